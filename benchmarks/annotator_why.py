# Copyright (c) monai_rrr contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Do prototypes stand for what their kernels do? Purity, agreement and deletion, for ``annotator_tendency.py``."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor

from monai_rrr.attribution import matching_prototypes
from monai_rrr.handlers.prototype_bank import deviation_candidates
from monai_rrr.metrics import prototype_purity
from monai_rrr.networks import AnnotatorTendencyNet

__all__ = ["kernels_and_prototypes"]

PER_GROUP = 64
LEAST = 8


@torch.no_grad()
def kernels_and_prototypes(
    network: AnnotatorTendencyNet, embedding: Tensor, drawn: Tensor, consensus: Tensor
) -> dict[str, Any]:
    """Scores on cases that made no prototype.

    Args:
        network: trained.
        embedding: ``N E d h w``.
        drawn: ``N R D H W``.
        consensus: ``N D H W``.

    Returns:
        ``purity`` of the prototypes and its ``purity_chance``, ``cosine`` of kernels and their prototypes, and how far
        the logits in places where an annotator deviates move without the kernel of the best prototype
        (``deletion``) and of another one (``deletion_other``), as means over cases and annotators.
    """
    classes, count = network.num_classes, len(network.annotators)
    prototypes = network.tendency_bank.prototype.unflatten(0, (count, classes))
    there = prototypes.square().sum(-1) > 0
    kernels = torch.stack([one.kernels() for one in network.tendencies])  # type: ignore[operator, misc]
    points, groups = [], []
    generator = torch.Generator().manual_seed(0)
    for index in range(len(drawn)):
        case = {"embedding": embedding[index], "annotations": drawn[index], "consensus_label": consensus[index]}
        (point, group, _), _ = deviation_candidates(case, index, classes, PER_GROUP, generator)
        points.append(point)
        groups.append(group)
    point, group = torch.cat(points), torch.cat(groups)
    names = torch.arange(count * classes).repeat_interleave(prototypes.shape[2])[there.flatten()]
    result: dict[str, Any] = {"prototypes": int(there.sum()), "slots": there.numel()}
    if len(point) >= 10 and there.any():
        purity = prototype_purity(prototypes[there], names, point, group)
        share = torch.bincount(group, minlength=count * classes) / len(group)
        result["purity"] = round(float(purity.mean()), 4)
        result["purity_chance"] = round(float(share[names].mean()), 4)
        own = (prototype_purity(prototypes[there], names // classes, point, group // classes)).mean()
        result["purity_annotator"] = round(float(own), 4)
        result["purity_annotator_chance"] = round(
            float((torch.bincount(group // classes, minlength=count) / len(group))[names // classes].mean()), 4
        )
        result["cosine"] = round(float((kernels * prototypes).sum(-1)[there].mean()), 4)
    return result | deletion(network, kernels, prototypes, points, groups)


def deletion(
    network: AnnotatorTendencyNet, kernels: Tensor, prototypes: Tensor, points: list[Tensor], groups: list[Tensor]
) -> dict[str, Any]:
    """Effect of taking away the kernel of the best prototype, against that of the annotator's other ones."""
    classes, slots = kernels.shape[1:3]
    scale = network.log_scale.exp()
    best, other = [], []
    for point, group in zip(points, groups, strict=True):
        for r, tendency in enumerate(network.tendencies):
            seen = point[group // classes == r]
            matches = matching_prototypes(seen, prototypes[r], 1) if len(seen) >= LEAST else []
            if not matches:
                continue
            response = scale * torch.einsum("ne,cme->ncm", seen, kernels[r]) / network.temperature

            def departure(gone: int | None, response: Tensor = response, gamma: Any = tendency.gamma) -> Tensor:
                kept = response.flatten(1).clone()
                if gone is not None:
                    kept[:, gone] = -torch.inf
                value = network.temperature * (kept.unflatten(1, (classes, slots)).logsumexp(2) - log(slots))
                moved: Tensor = gamma * (value - value.mean(1, keepdim=True))
                return moved

            if slots == 1:
                continue
            whole = departure(None)
            effect = torch.stack([(departure(k) - whole).abs().sum(1).mean() for k in range(classes * slots)])
            chosen = matches[0].label * slots + matches[0].slot
            best.append(float(effect[chosen]))
            other.append(float((effect.sum() - effect[chosen]) / (len(effect) - 1)))
    if not best:
        return {}
    wins = sum(a > b for a, b in zip(best, other, strict=True)) / len(best)
    return {
        "deletion": round(sum(best) / len(best), 5),
        "deletion_other": round(sum(other) / len(other), 5),
        "deletion_wins": round(wins, 4),
    }
