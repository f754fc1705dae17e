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

"""What several annotators of a case say together."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["vote_share"]


def vote_share(annotations: Tensor, annotated: Tensor | None = None, num_classes: int = 4) -> Tensor:
    """Share of the annotators who say a class, among those who say anything about the voxel.

    ``argmax`` over classes is the vote: of equal ones the lowest, so that a tie with background is background. Never
    waits for the device.

    Args:
        annotations: classes below ``C``, negative where an annotator says nothing.
        annotated: whether an annotator drew the case; others don't count, whatever their mask holds. None: all did.
        num_classes: ``C``.

    Shape:
        - annotations: ``BRX[YZ]``, whole numbers; annotated: ``BR``
        - output: ``BCX[YZ]`` float32, sums to 1; zeros where nobody says anything

    Raises:
        ValueError: When shapes don't match.

    Example:
        >>> vote_share(torch.tensor([[[2, 1, -1], [2, -1, -1], [0, -1, -1]]]), num_classes=3)[0].T
        tensor([[0.3333, 0.0000, 0.6667],
                [0.0000, 1.0000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    known = annotations >= 0
    if annotated is not None:
        if annotated.shape != annotations.shape[:2]:
            got = f"{tuple(annotated.shape)} and {tuple(annotations.shape)}"
            raise ValueError(f"expected annotated B R for annotations B R X [Y Z], got {got}")
        known = known & annotated.bool().reshape(*annotated.shape, *(1,) * (annotations.ndim - 2))
    # one class at a time: all one-hot masks of all annotators at once would be C times as large
    votes = torch.stack([((annotations == index) & known).sum(1) for index in range(num_classes)], 1)
    return votes / known.sum(1, keepdim=True).clamp(min=1)
