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

from monai.data import MetaTensor
from torch import Tensor

__all__ = ["SetAccuracy", "set_accuracy", "top_one"]


def top_one(posteriors: Tensor, truth: Tensor) -> float:
    """Share of the cases or regions whose most probable annotator is the right one; NaN without any.

    Args:
        posteriors: ``N R``.
        truth: ``N``, index of the annotator.

    Example:
        >>> import torch
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
        >>> import torch
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
