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

"""Distances between two heatmaps of the same evidence."""

from __future__ import annotations

import torch
from monai.utils import LossReduction
from torch import Tensor
from torch.nn.modules.loss import _Loss

from monai_rrr.losses.reduction import full_precision

__all__ = ["HeatmapDistanceLoss"]


class HeatmapDistanceLoss(_Loss):
    r"""How far two heatmaps are apart, over the voxels of a mask.

    Zero when they are equal. With ``kind``:

    - ``"relative"``: :math:`\sum (a-b)^2 / (\sum a^2 + \sum b^2 + \epsilon)`, in [0, 1] for non-negative maps;
      independent of size, sensitive to amplitude;
    - ``"cosine"``: :math:`1 - \sum a b / (\|a\| \|b\|)`, in [0, 1] for non-negative maps; ignores amplitude;
    - ``"mean_cosine"``: the cosine distance times 2 over the number of masked voxels, as released with WSS-CMER, where
      the factor makes the term practically inert; for ablations;
    - ``"mean_square"``: :math:`\frac{1}{|m|} \sum (a-b)^2`, as released with WSS-CMER.

    Args:
        kind: see above.
        eps: lower bound of a denominator.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over batch and channels.

    Shape:
        - input, target: ``BTH[WD]``, non-negative, larger is more evidence; both receive gradient.
        - mask: ``B1H[WD]`` or ``BTH[WD]``; ``True`` where the maps are compared. Default: everywhere.
        - output: scalar, or ``BT`` when ``reduction="none"``.

    Raises:
        ValueError: When ``kind`` is unknown, ``eps`` is not positive, or the shapes do not fit.

    Note:
        Two maps of zeros have distance 0 in every kind; a map of zeros against another has relative and cosine
        distance 1: a flat map never looks better than a good one.

    Reference:
        Patel and Dolz, arXiv 2104.02488. The released code normalizes with ``p / norm(p + eps)`` and averages over all
        voxels; here the norm is clamped and sums run over the mask only.

    Example:
        >>> a = torch.tensor([[[1.0, 0.0]]])
        >>> HeatmapDistanceLoss("cosine")(a, 3 * a), HeatmapDistanceLoss("relative")(a, 3 * a)
        (tensor(0.), tensor(0.4000))
    """

    kinds = ("relative", "cosine", "mean_cosine", "mean_square")

    def __init__(
        self,
        kind: str = "relative",
        eps: float = 1e-8,
        reduction: LossReduction | str = LossReduction.MEAN,
    ) -> None:
        super().__init__(reduction=LossReduction(reduction).value)
        if kind not in self.kinds:
            raise ValueError(f"kind must be one of {self.kinds}, got {kind!r}")
        if eps <= 0:
            raise ValueError(f"eps must be positive, got {eps}")
        self.kind, self.eps = kind, eps

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the distance."""
        if input.shape != target.shape:
            raise ValueError(f"heatmap {tuple(input.shape)} does not match heatmap {tuple(target.shape)}")
        a, b = full_precision(input).flatten(2), full_precision(target).flatten(2)
        if mask is None:
            inside = torch.ones_like(a[:, :1])
        elif mask.shape in (input.shape, (len(input), 1, *input.shape[2:])):
            inside = mask.to(a.dtype).flatten(2)
        else:
            raise ValueError(f"mask {tuple(mask.shape)} does not match heatmap {tuple(input.shape)}")
        a, b = a * inside, b * inside
        if self.kind == "relative":
            distance = (a - b).square().sum(2) / (a.square().sum(2) + b.square().sum(2)).clamp(min=self.eps)
        elif self.kind == "mean_square":
            distance = (a - b).square().sum(2) / inside.sum(2).clamp(min=1)
        else:
            square_a, square_b = a.square().sum(2), b.square().sum(2)
            cosine = (a * b).sum(2) / (square_a * square_b).clamp(min=self.eps**2).sqrt()
            distance = torch.where((square_a + square_b) > self.eps, 1 - cosine, torch.zeros_like(cosine))
            if self.kind == "mean_cosine":
                distance = 2 * distance / inside.sum(2).clamp(min=1)
        if self.reduction == LossReduction.MEAN.value:
            return distance.mean()
        return distance.sum() if self.reduction == LossReduction.SUM.value else distance
