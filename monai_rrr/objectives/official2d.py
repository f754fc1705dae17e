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

"""The released 2D method, term by term, for comparison with ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.mutual_kl import MutualKLLoss
from monai_rrr.objectives.base import Objective

__all__ = [
    "OfficialClassification",
    "OfficialCrossModal",
    "OfficialMutualLearning",
    "OfficialWithinModal",
    "official2d",
]

_EPS = 1e-8


def official2d(layer: str = "class_maps") -> Objective:
    r"""Objective of WSS-CMER as released: 2D, softmax over two classes, per-sample normalized maps, no ramp.

    .. math:: L^i = L_C + 0.5\, L_{KD} + L_{ER} + L_{CM}

    summed over the modalities. The batch holds ``N`` images followed by their ``N`` warped views (``warp``), and
    ``class_label`` (``2N``, 0 or 1). Maps are ``2N M 2 H W``; the logits ``2N M 2`` are their means over all pixels.
    Three deviations: all modalities are updated by one step, not one after another; the mistyped and undefined names of
    the released code are read as what they must mean; the norm is clamped, which differs only for maps of zeros.

    Args:
        layer: layer that holds the maps.

    Reference:
        Patel and Dolz, arXiv 2104.02488, and section 2 of the project's method card.
    """
    return Objective(
        {
            "classification": OfficialClassification(),
            "mutual_learning": OfficialMutualLearning(),
            "within_modal": OfficialWithinModal(layer),
            "cross_modal": OfficialCrossModal(layer),
        },
        {"classification": 1.0, "mutual_learning": 0.5, "within_modal": 1.0, "cross_modal": 1.0},
    )


@dataclass(frozen=True)
class OfficialClassification:
    r"""``L_C``: cross-entropy, averaged over the two views, summed over the modalities."""

    layers: tuple[str, ...] = ()

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        modalities = trace.logits.shape[1]
        target = batch["class_label"].long()[:, None].expand(-1, modalities)
        return F.cross_entropy(trace.logits.flatten(0, 1), target.flatten()) * modalities


@dataclass(frozen=True)
class OfficialMutualLearning:
    r"""``L_KD``: :math:`\frac{1}{2 (M-1)} \sum_{j \ne i} T^2 \mathrm{KL}(p_j \| p_i)` over both views, ``T = 10``."""

    layers: tuple[str, ...] = ()
    temperature: float = 10.0

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        logits = trace.logits
        modalities = logits.shape[1]
        if modalities == 1:
            return logits.sum() * 0.0
        pupil, teacher = torch.broadcast_tensors(logits.unsqueeze(2), logits.unsqueeze(1))
        value: Tensor = MutualKLLoss(self.temperature, reduction="none")(pupil, teacher)
        # the mean over both views is the half of the equation; KL of a head with itself is 0
        return value.mean(0).sum() / (modalities - 1)


@dataclass(frozen=True)
class OfficialWithinModal:
    r"""``L_ER``: mean square over all pixels and samples, negatives as 0; gradient to both sides."""

    layer: str = "class_maps"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return (self.layer,)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        moved, second, positive = _normalized_views(trace.features[self.layer], batch)
        value = (moved - second).square().mean((2, 3)) * positive[:, None]
        return value.mean(0).sum()


@dataclass(frozen=True)
class OfficialCrossModal:
    r"""``L_CM``: squared distance of L2-normalized maps, averaged over all pixels; the teacher must be right."""

    layer: str = "class_maps"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return (self.layer,)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        moved, second, _ = _normalized_views(trace.features[self.layer], batch)
        modalities = moved.shape[1]
        if modalities == 1:
            return moved.sum() * 0.0
        right = trace.logits.argmax(2).float() * batch["class_label"].float()[:, None]
        right_first, right_second = right.chunk(2)
        total = moved.new_zeros(())
        for i in range(modalities):
            for j in range(modalities):
                if i != j:
                    total = total + _unit_distance(moved[:, i], second[:, j].detach(), right_second[:, j])
                    total = total + _unit_distance(second[:, i], moved[:, j].detach(), right_first[:, j])
        return 0.5 * total / (modalities - 1)


def _normalized_views(maps: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Moved maps of the first view, maps of the second (``N M H W``, class 1, in [0, 1]) and the labels ``N``."""
    evidence = F.relu(maps[:, :, 1].float())
    low = evidence.amin((2, 3), keepdim=True)
    high = evidence.amax((2, 3), keepdim=True)
    scaled = F.relu(evidence - low - _EPS) / (high - low + _EPS)
    first, second = scaled.chunk(2)
    return batch["warp"](first), second, batch["class_label"].float().chunk(2)[0]


def _unit_distance(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    a, b = a.flatten(1), b.flatten(1)
    a = a / a.norm(dim=1, keepdim=True).clamp(min=_EPS)
    b = b / b.norm(dim=1, keepdim=True).clamp(min=_EPS)
    return ((a - b).square().mean(1) * weight).mean()
