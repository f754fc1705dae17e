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

"""Relevance outside the region of interest, ranked, and the range of the relevance inside (ISNet)."""

from __future__ import annotations

import math

import torch
from monai.utils import LossReduction
from torch import Tensor
from torch.nn.modules.loss import _Loss

from monai_rrr.losses.reduction import broadcast_to_heatmap, full_precision, reduced

__all__ = ["ISNetLoss"]


class ISNetLoss(_Loss):
    r"""Penalize relevance in the background, and keep the total relevance of the foreground in a range.

    .. math:: R_n &= |R| / \big(\operatorname{mean}_{m=1} |R| + 10^{-10}\big), \qquad
              b = \sum_i d^i v_{(i)} / \sum_i d^i \\
              L_{bg} &= \operatorname{mean}_M -\log\big(1 - \min(b / (b + 1), 1 - 10^{-7})\big) \\
              L_{fg} &= (\min(F / C_1, 1) - 1)^2 + (\max(F / C_1, C_2 / C_1) - C_2 / C_1)^2, \quad F = \sum_{m=1} |R| \\
              L &= w_{bg} L_{bg} + w_{fg} L_{fg}

    where :math:`v_{(i)}` are the values of :math:`R_n` in the background, in descending order. Both parts are 0 when no
    relevance is in the background and that of the foreground is in range.

    Args:
        fraction: share of the background voxels that the ranking effectively looks at: ``d = 1 - 1 / (fraction N)``.
        decay: ``d`` itself, instead of ``fraction``; 0.9 as released, which looks at about ten voxels whatever their
            number.
        background: weight of the background part.
        foreground: weight of the foreground part; 0 leaves it out.
        bounds: ``C1`` and ``C2``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over batch and classes.

    Shape:
        - input: relevance ``BTMH[WD]``; the modality axis is needed, 1 where there is none. Sign is ignored.
        - target: region of interest in [0, 1], 1 = foreground; as the input, axes may be 1.
        - mask: voxels that count; as the input, axes may be 1. Default: everywhere.
        - output: scalar, or ``BT`` when ``reduction="none"``.

    Raises:
        ValueError: When an argument or a shape does not fit.

    Note:
        Only as many of the largest values are ranked as matter: the weight of the first one left out is below 5e-5
        of that of the largest one.

    Reference:
        P. Bassi et al., ISNet, arXiv 2202.00232, as released. Differs from it in: 3D; ``fraction``; only voxels in
        ``mask``; the mean over the modalities is taken at the end.

    Example:
        >>> inside = torch.tensor([[[[2.0, 2.0, 0.0, 0.0]]]])
        >>> region = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
        >>> ISNetLoss()(inside, region), ISNetLoss(foreground=0.0)(inside.flip(3) + inside, region)
        (tensor(0.), tensor(0.6931))
    """

    def __init__(
        self,
        fraction: float = 0.01,
        decay: float | None = None,
        background: float = 1.0,
        foreground: float = 3.0,
        bounds: tuple[float, float] = (1.0, 25.0),
        reduction: LossReduction | str = LossReduction.MEAN,
    ) -> None:
        super().__init__(reduction=LossReduction(reduction).value)
        if not 0 < fraction <= 1 or (decay is not None and not 0 <= decay < 1):
            raise ValueError(f"expected fraction in (0, 1] and decay in [0, 1), got {fraction} and {decay}")
        if min(background, foreground) < 0 or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(
                f"expected weights of at least 0 and 0 < C1 <= C2, got {background}, {foreground} and {tuple(bounds)}"
            )
        self.fraction, self.decay = fraction, decay
        self.background, self.foreground, self.bounds = background, foreground, (float(bounds[0]), float(bounds[1]))

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss."""
        if input.ndim < 4:
            raise ValueError(f"expected relevance of shape B T M H [W D], got {tuple(input.shape)}")
        allowed = broadcast_to_heatmap(target, input, "evidence mask").flatten(3)
        counts = torch.ones_like(allowed) if mask is None else broadcast_to_heatmap(mask, input, "mask").flatten(3)
        size, allowed = full_precision(input).abs().flatten(3), allowed * counts
        inside = (size * allowed).sum((2, 3))
        mean = inside / allowed.sum((2, 3)).clamp(min=1) + 1e-10
        ranked = self.ranked_mean(size / mean[..., None, None], counts - allowed)
        value = self.background * -torch.log(1 - (ranked / (ranked + 1)).clamp(max=1 - 1e-7)).mean(2)
        if self.foreground > 0:
            low, high = self.bounds
            share = inside / low
            outside_range = (share.clamp(max=1) - 1).square() + (share.clamp(min=high / low) - high / low).square()
            value = value + self.foreground * outside_range
        return reduced(value, self.reduction)

    def ranked_mean(self, values: Tensor, outside: Tensor) -> Tensor:
        """Global weighted rank pooling of the background, ``B T M``."""
        voxels = values.shape[-1]
        background = outside.sum(3, keepdim=True)
        if self.decay is None:
            decay = 1 - 1 / (self.fraction * background).clamp(min=1)
            looked_at = self.fraction * voxels
        else:
            decay = torch.full_like(outside[..., :1], self.decay)
            looked_at = 1 / (1 - self.decay)
        count = min(voxels, math.ceil(10 * looked_at) + 1)
        largest = (values * outside).topk(count, dim=3).values
        rank = torch.arange(count, device=values.device)
        weight = decay**rank * (rank < background.clamp(min=1))
        return (largest * weight).sum(3) / weight.sum(3)
