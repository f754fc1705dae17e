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

"""Simple consensus of several annotators: a vote, and the mean of their masks."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["soft_vote", "vote"]


def soft_vote(annotations: Tensor, annotated: Tensor | None = None, num_classes: int = 4) -> Tensor:
    """Share of the annotators who say each class, among those who say anything about the voxel.

    Args:
        annotations: classes, -1 where an annotator says nothing.
        annotated: whether an annotator drew the case; others don't count, whatever their mask holds. None: all did.
        num_classes: number of classes ``C``.

    Shape:
        - annotations: ``BRH[WD]``, integer; annotated: ``BR``
        - output: ``BCH[WD]`` float32, sums to 1; ``1 / C`` where nobody says anything

    Raises:
        ValueError: When shapes don't match or a class is not below ``num_classes``.

    Example:
        >>> soft_vote(torch.tensor([[[2, 1], [2, -1], [0, -1]]]), num_classes=3)[0].T
        tensor([[0.3333, 0.0000, 0.6667],
                [0.0000, 1.0000, 0.0000]])
    """
    if annotated is not None and annotated.shape != annotations.shape[:2]:
        raise ValueError(f"annotated {tuple(annotated.shape)} does not match annotations {tuple(annotations.shape)}")
    if annotations.numel() and int(annotations.max()) >= num_classes:
        raise ValueError(f"expected classes below {num_classes}, got {int(annotations.max())}")
    said = annotations
    if annotated is not None:
        said = torch.where(annotated.bool().reshape(*annotated.shape, *(1,) * (annotations.ndim - 2)), said, -1)
    # one class at a time: all one-hot masks of all annotators at once would be C times as large
    votes = torch.stack([(said == index).sum(1) for index in range(num_classes)], dim=1).float()
    total = votes.sum(1, keepdim=True)
    return torch.where(total > 0, votes / total.clamp(min=1), 1.0 / num_classes)


def vote(annotations: Tensor, annotated: Tensor | None = None, num_classes: int = 4) -> Tensor:
    """Class that most annotators say; of equal ones the lowest, so that a tie with background is background.

    Args:
        annotations: as for :func:`soft_vote`.
        annotated: as for :func:`soft_vote`.
        num_classes: number of classes.

    Returns:
        ``BH[WD]`` int64; background where nobody says anything.

    Example:
        >>> vote(torch.tensor([[[2, 1, 3], [2, -1, 0], [0, -1, -1]]])).tolist()
        [[2, 1, 0]]
    """
    return soft_vote(annotations, annotated, num_classes).argmax(1)
