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

"""Nested regions must have nested heatmaps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from monai_rrr.losses.reduction import full_precision, weighted_mean

__all__ = ["NestingLoss"]


class NestingLoss(_Loss):
    r"""How far an inner region's heatmap stands out of the outer region's.

    .. math:: L = \frac{1}{|m|} \sum_{x \in m} \sum_c \max(0, A_{c+1}(x) - A_c(x))

    for heatmaps in the order from the outermost to the innermost class (WT, TC, ET). Zero when they are nested; at
    most the number of classes minus one for maps in [0, 1].

    Shape:
        - input: ``BTH[WD]``, larger is more evidence, at least two classes.
        - mask: ``B1H[WD]``, where the maps count. Default: everywhere.
        - output: scalar.

    Raises:
        ValueError: When there is only one class, or the mask does not fit.

    Example:
        >>> NestingLoss()(torch.tensor([[[0.9], [0.5], [0.75]]]))
        tensor(0.2500)
    """

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean violation per voxel."""
        if input.shape[1] < 2:
            raise ValueError(f"nesting needs at least 2 classes, got heatmap {tuple(input.shape)}")
        if mask is not None and mask.shape != (len(input), 1, *input.shape[2:]):
            raise ValueError(f"mask {tuple(mask.shape)} does not match heatmap {tuple(input.shape)}")
        input = full_precision(input)
        violation = (input[:, 1:] - input[:, :-1]).clamp(min=0).sum(1, keepdim=True)
        return weighted_mean(violation, torch.ones_like(violation) if mask is None else mask)
