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

"""Two explanations of one prediction must agree."""

from __future__ import annotations

import torch
from monai.utils import LossReduction
from torch import Tensor
from torch.nn.modules.loss import _Loss

from monai_rrr.losses.reduction import broadcast_to_heatmap, full_precision, reduced, weighted_mean

__all__ = ["AttentionConsistencyLoss"]


class AttentionConsistencyLoss(_Loss):
    r"""One minus the correlation of two heatmaps over the voxels of a mask.

    .. math:: L = 1 - \rho(a, b), \qquad a = \sigma\Big(\frac{h_1 - \bar h_1}{s_1}\Big), \quad
              b = \sigma\Big(\frac{h_2 - \bar h_2}{s_2}\Big)

    with Pearson's :math:`\rho`. Zero for maps that agree up to a positive factor and an offset, 1 for unrelated maps,
    at most 2. A flat map costs 1 and receives no gradient: a collapse is never rewarded.

    Args:
        squash: apply the sigmoid; without it, bright spots count in full.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over batch and classes; a sample whose mask is empty does not
            count (0 when ``"none"``).

    Shape:
        - input, target: heatmaps ``BTH[WD]``; both receive gradient.
        - mask: voxels that count; as the heatmap, axes may be 1. Default: everywhere.
        - output: scalar, or ``BT`` when ``reduction="none"``.

    Raises:
        ValueError: When the shapes do not fit.

    Reference:
        A. Mirzazadeh et al., ATCON: attention consistency for vision models, WACV 2023, arXiv 2210.09705, as released
        (there: minus the correlation, over the whole image).

    Example:
        >>> heatmap = torch.tensor([[[0.0, 1.0, 2.0, 5.0]]])
        >>> loss = AttentionConsistencyLoss()
        >>> bool(loss(heatmap, 3 * heatmap + 1).abs() < 1e-6), loss(heatmap, torch.ones(1, 1, 4))
        (True, tensor(1.))
    """

    def __init__(self, squash: bool = True, reduction: LossReduction | str = LossReduction.MEAN) -> None:
        super().__init__(reduction=LossReduction(reduction).value)
        self.squash = squash

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the disagreement."""
        if input.shape != target.shape:
            raise ValueError(f"heatmap {tuple(input.shape)} does not match heatmap {tuple(target.shape)}")
        inside = torch.ones_like(input) if mask is None else broadcast_to_heatmap(mask, input, "mask")
        inside = full_precision(inside).flatten(2)
        a, flat_a = self._standardized(full_precision(input).flatten(2), inside)
        b, flat_b = self._standardized(full_precision(target).flatten(2), inside)
        covariance = (a * b * inside).sum(2)
        norms = ((a.square() * inside).sum(2) * (b.square() * inside).sum(2)).clamp(min=1e-20).sqrt()
        flat = flat_a | flat_b
        value = 1 - torch.where(flat, torch.zeros_like(norms), covariance / norms)
        seen = (inside > 0).any(2)
        if self.reduction == LossReduction.MEAN.value:
            return weighted_mean(value, seen)
        return reduced(torch.where(seen, value, torch.zeros_like(value)), self.reduction)

    def _standardized(self, heatmap: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squashed map about its mean, and where the map is flat."""
        count = inside.sum(2, keepdim=True).clamp(min=1)
        mean = (heatmap * inside).sum(2, keepdim=True) / count
        variance = ((heatmap - mean).square() * inside).sum(2, keepdim=True) / count
        # rounding leaves some variance in a constant map: below a millionth of its values there is no pattern
        least = (1e-6 * mean.detach().abs()).clamp(min=1e-12).square()
        standardized = (heatmap - mean) / variance.clamp(min=least).sqrt()
        if self.squash:
            standardized = standardized.sigmoid()
        center = (standardized * inside).sum(2, keepdim=True) / count
        return standardized - center, (variance <= least).squeeze(2)
