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

"""Who and why, for a whole case and for a region of it: the levels at which annotators can be told apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_rrr.attribution.tendency import mixture, prototype_similarity

__all__ = [
    "PrototypeMatch",
    "annotator_posterior",
    "disagreement",
    "label_without",
    "matching_prototypes",
    "saliency_box",
]


def disagreement(probability: Tensor) -> Tensor:
    r"""How far the two annotators who differ most are apart: total variation.

    .. math:: D(v) = \max_{r,s} \tfrac12 \sum_c |p_r(c|v) - p_s(c|v)|

    Shape:
        - probability: ``BRC...``; output: ``B...`` in [0, 1].
    """
    found = torch.zeros_like(probability[:, 0, 0])
    for r in range(1, probability.shape[1]):
        apart = (probability[:, :r] - probability[:, r : r + 1]).abs().sum(2) / 2
        found = torch.maximum(found, apart.amax(1))
    return found


def annotator_posterior(
    probability: Tensor, label: Tensor, region: Tensor, rho: Tensor, temperature: float = 100.0
) -> Tensor:
    r"""Who drew a mask, for a whole case or for each of its regions.

    .. math:: \log P(r | y) = \log \rho_r + \frac1T \sum_{v \in D} \log p_r(y(v) | v) + \mathrm{const}

    Args:
        probability: ``RC...`` of one case.
        label: the mask ``...``, whole numbers; negative where nothing is known.
        region: ``...`` whole numbers: 0 counts for nothing, 1 to N are the regions, such as the connected components
            of ``disagreement(p) > 0.2``; a boolean mask is one region.
        rho: ``R``, prior.
        temperature: ``T``: neighboring voxels repeat each other, this many count as one. A setting that the sources
            leave open; it never changes the order.

    Returns:
        ``N R``, rows sum to 1; the prior for a region without known voxels.

    Raises:
        ValueError: When the shapes differ.
    """
    if probability.shape[2:] != label.shape or label.shape != region.shape:
        raise ValueError(
            f"label {tuple(label.shape)} and region {tuple(region.shape)} do not match probability "
            f"{tuple(probability.shape)}"
        )
    flat, chosen, index = probability.flatten(2), label.flatten().long(), region.flatten().long()
    known = (chosen >= 0) & (index > 0)
    count = max(int(index.max()), 1) if index.numel() else 1
    evidence = flat.gather(1, chosen.clamp(min=0).expand(len(flat), 1, -1))[:, 0]
    evidence = evidence.clamp(min=1e-12).log() * known
    total = evidence.new_zeros(count + 1, len(flat)).index_add(0, index, evidence.T.contiguous())[1:]
    return (rho.to(total).log() + total / temperature).softmax(1)


def label_without(share: Tensor, probability: Tensor, annotator: int) -> Tensor:
    """Counterfactual: the label of the mixture had the annotator not taken part.

    Args:
        share: ``B 1+R ...``.
        probability: ``B 1+R C ...``, the consensus first.
        annotator: from 1 to R; 0 leaves out what all share.

    Returns:
        ``B ...`` whole numbers.

    Raises:
        ValueError: When there is no such annotator.
    """
    if not 0 <= annotator < share.shape[1]:
        raise ValueError(f"annotator must be from 0 to {share.shape[1] - 1}, got {annotator}")
    kept = torch.arange(share.shape[1], device=share.device) != annotator
    return mixture(share[:, kept], probability[:, kept]).argmax(1)


@dataclass(frozen=True)
class PrototypeMatch:
    """A prototype that explains a region.

    Attributes:
        label: class.
        slot: which of the prototypes of annotator and class.
        similarity: cosine.
    """

    label: int
    slot: int
    similarity: float


def matching_prototypes(embedding: Tensor, prototypes: Tensor, count: int = 3) -> list[PrototypeMatch]:
    """The prototypes of one annotator that are most like a region, best first.

    Args:
        embedding: ``n E``, voxels of the region.
        prototypes: ``C M E`` of the annotator.
        count: at most this many; fewer when there are fewer.

    Raises:
        ValueError: When the region has no voxel.
    """
    if not len(embedding):
        raise ValueError("expected a region of at least 1 voxel, got 0")
    center = torch.nn.functional.normalize(embedding.mean(0, keepdim=True), dim=1)
    cosine = prototype_similarity(center, prototypes)[0]
    best = cosine.flatten().topk(min(count, cosine.numel()))
    slots = prototypes.shape[1]
    return [
        PrototypeMatch(place // slots, place % slots, value)
        for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if value >= -1.01
    ]


def saliency_box(gradient: Tensor, share: float = 0.9) -> tuple[tuple[int, int], ...]:
    """The part of the image on which a voxel of the result depends: decoder features see far more than their voxel.

    Args:
        gradient: of one value of the result by the image, ``M...``; its sign is ignored.
        share: of the absolute gradient that lies between the two limits of each axis, the rest being split evenly.

    Returns:
        for each axis the first voxel and the one after the last.

    Raises:
        ValueError: When ``share`` is not in (0, 1], or the gradient is zero everywhere.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    size = gradient.detach().abs().sum(0).double()
    if not bool(size.sum() > 0):
        raise ValueError("expected a gradient that is not zero everywhere: the value does not depend on the image")
    box = []
    for axis in range(size.ndim):
        line = size.sum([other for other in range(size.ndim) if other != axis])
        part = line.cumsum(0) / line.sum()
        tail = (1 - share) / 2
        below = torch.nonzero(part > tail + 1e-12)[0]
        above = torch.nonzero(part >= 1 - tail - 1e-12)[0]
        box.append((int(below), int(above) + 1))
    return tuple(box)
