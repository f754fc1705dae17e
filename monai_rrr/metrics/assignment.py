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

"""Who drew this: naming an annotator for a case or a region, and how often the name is right."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor

__all__ = ["SetAccuracy", "annotator_posterior", "disputed_voxels", "region_posteriors", "set_accuracy", "top_one"]


def disputed_voxels(probabilities: Tensor, threshold: float = 0.2) -> Tensor:
    r"""Voxels where two annotators are predicted to differ: :math:`\max_{r,s} TV(p_r, p_s) > 0.2`.

    Args:
        probabilities: class probabilities of each annotator.
        threshold: of the total variation, in [0, 1).

    Shape:
        - probabilities: ``RCX[YZ]``; output: ``X[YZ]`` bool
    """
    p = _plain(probabilities)
    if p.ndim < 3 or not 0 <= threshold < 1:
        raise ValueError(f"expected R C X [Y Z] and a threshold in [0, 1), got {tuple(p.shape)} and {threshold}")
    largest = torch.zeros(p.shape[2:], dtype=p.dtype, device=p.device)
    for first, second in combinations(p, 2):  # one pair at a time: all of them at once would be R times as large
        largest = torch.maximum(largest, 0.5 * (first - second).abs().sum(0))
    return largest > threshold


def annotator_posterior(
    probabilities: Tensor,
    mask: Tensor,
    prior: Tensor | None = None,
    threshold: float = 0.2,
    temperature: float = 1.0,
) -> Tensor:
    r"""Probability that each annotator drew an anonymous mask.

    .. math:: \log P(r \mid y) = \log \rho_r + \frac{1}{T} \sum_{v \in D} \log p_r(y(v) \mid v) + \text{const}

    D are the voxels of :func:`disputed_voxels`; elsewhere everybody predicts the same. When there are none, or the mask
    says nothing about them, the prior remains.

    Args:
        probabilities: class probabilities of each annotator.
        mask: classes of the anonymous mask, -1 where not known.
        prior: how much each annotator counts, positive. None: alike.
        threshold: see :func:`disputed_voxels`.
        temperature: neighboring voxels are not independent; above 1 the posterior is less sure. The name that comes
            first changes only through the prior.

    Shape:
        - probabilities: ``RCX[YZ]``; mask: ``X[YZ]`` integer; prior: ``R``
        - output: ``R`` float64, sums to 1

    Raises:
        ValueError: When shapes don't match or the temperature isn't positive.

    Example:
        >>> p = torch.tensor([[[0.9, 0.5], [0.1, 0.5]], [[0.3, 0.5], [0.7, 0.5]]])
        >>> annotator_posterior(p, torch.tensor([0, 1]))
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    where = disputed_voxels(probabilities, threshold)
    return _posterior(_log_of(probabilities, mask), where & (_plain(mask) >= 0), prior, temperature)


def region_posteriors(
    probabilities: Tensor,
    mask: Tensor,
    prior: Tensor | None = None,
    threshold: float = 0.2,
    temperature: float = 1.0,
    min_voxels: int = 1,
) -> tuple[Tensor, Tensor]:
    """Do the same for every connected region of disagreement (voxels that touch by a face, an edge or a corner).

    Args:
        probabilities: as for :func:`annotator_posterior`.
        mask: likewise.
        prior: likewise.
        threshold: likewise.
        temperature: likewise.
        min_voxels: smaller regions are left out.

    Returns:
        ``X[YZ]`` int64, 0 or the number of the region from 1; and ``N R`` float64, a posterior for each region.
    """
    where = disputed_voxels(probabilities, threshold) & (_plain(mask) >= 0)
    parts, count = ndimage.label(where.cpu().numpy(), torch.ones((3,) * where.ndim).numpy())
    found = torch.as_tensor(parts, dtype=torch.int64, device=where.device)
    sizes = found.flatten().bincount(minlength=count + 1)
    logs, regions, posteriors = _log_of(probabilities, mask), torch.zeros_like(found), []
    for index in range(1, count + 1):
        if sizes[index] >= min_voxels:
            posteriors.append(_posterior(logs, found == index, prior, temperature))
            regions[found == index] = len(posteriors)
    empty = torch.zeros(0, len(logs), dtype=torch.float64, device=logs.device)
    return regions, torch.stack(posteriors) if posteriors else empty


def top_one(posteriors: Tensor, truth: Tensor) -> float:
    """Share of the cases or regions whose most probable annotator is the right one; NaN without any.

    Args:
        posteriors: ``N R``.
        truth: ``N``, index of the annotator.

    Example:
        >>> top_one(torch.tensor([[0.7, 0.3], [0.6, 0.4]]), torch.tensor([0, 1]))
        0.5
    """
    if posteriors.ndim != 2 or truth.shape != posteriors.shape[:1]:
        raise ValueError(f"expected N R and N, got {tuple(posteriors.shape)} and {tuple(truth.shape)}")
    return float((posteriors.argmax(1) == truth).double().mean())


@dataclass(frozen=True)
class SetAccuracy:
    """How often the annotator who is named for a voxel is one of those who drew what was emitted there.

    Args:
        accuracy: share of the voxels.
        chance: what naming anybody at random gives, the mean of :math:`|S(v)| / R`.
        lift: accuracy divided by chance; 1 means that the name says nothing.
        voxels: number of voxels that count.
    """

    accuracy: float
    chance: float
    lift: float
    voxels: int


def set_accuracy(who: Tensor, annotations: Tensor, emitted: Tensor) -> SetAccuracy:
    r"""Judge who is named voxel by voxel, as a set: :math:`S(v) = \{r : y_r(v) = \hat{y}(v)\}`.

    A single name per voxel can't be known: whoever draws as another draws is as right. Voxels count where the
    annotators differ and at least one of them drew what was emitted; elsewhere everybody or nobody would be right.

    Args:
        who: weight of each annotator; the largest is the name.
        annotations: classes, -1 where an annotator says nothing.
        emitted: classes of the prediction.

    Shape:
        - who, annotations: ``RX[YZ]``; emitted: ``X[YZ]``

    Raises:
        ValueError: When shapes don't match.

    Example:
        >>> who = torch.tensor([[0.9, 0.9], [0.1, 0.1]])
        >>> set_accuracy(who, torch.tensor([[1, 0], [0, 1]]), torch.tensor([1, 1]))
        SetAccuracy(accuracy=0.5, chance=0.5, lift=1.0, voxels=2)
    """
    weights, drawn, label = _plain(who), _plain(annotations), _plain(emitted)
    if weights.shape != drawn.shape or label.shape != drawn.shape[1:]:
        raise ValueError(f"expected R X [Y Z] twice and X [Y Z], got {[tuple(t.shape) for t in (who, annotations)]}")
    said = drawn >= 0
    right = (drawn == label) & said
    members = right.sum(0)
    counts = (members > 0) & (members < said.sum(0))
    total = int(counts.sum())
    if not total:
        return SetAccuracy(float("nan"), float("nan"), float("nan"), 0)
    named = right.gather(0, weights.argmax(0, keepdim=True))[0]
    accuracy = float(named[counts].double().mean())
    chance = float((members[counts].double() / len(drawn)).mean())
    return SetAccuracy(accuracy, chance, accuracy / chance, total)


def _plain(values: Tensor) -> Tensor:
    return (values.as_tensor() if isinstance(values, MetaTensor) else values).detach()


def _log_of(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Log-probability that each annotator gives to what the mask says, ``RX[YZ]``; unknown voxels count as class 0."""
    p, y = _plain(probabilities), _plain(mask)
    if p.shape[2:] != y.shape:
        raise ValueError(f"mask {tuple(y.shape)} does not match probabilities {tuple(p.shape)}")
    index = y.long().clamp(min=0).expand(len(p), 1, *y.shape)
    return p.gather(1, index)[:, 0].clamp(min=1e-12).log()


def _posterior(logs: Tensor, where: Tensor, prior: Tensor | None, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    total = logs[:, where].double().sum(1) / temperature
    if prior is not None:
        total = total + prior.to(total).log()
    return total.softmax(0)
