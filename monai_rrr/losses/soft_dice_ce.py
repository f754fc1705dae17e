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

"""Dice and cross-entropy of classes that exclude each other, with soft targets and voxels that don't count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.utils import LossReduction
from torch import Tensor
from torch.nn.modules.loss import _Loss

from monai_rrr.losses.reduction import full_precision, reduced

__all__ = ["SoftDiceCELoss"]


class SoftDiceCELoss(_Loss):
    r"""Cross-entropy plus Dice of each sample over the voxels that count.

    .. math:: L = -\operatorname{mean}_{v\,:\, m_v} \sum_c t_{cv} \log p_{cv} +
              \operatorname{mean}_{c > 0\,:\, t_c \ne 0} \mathrm{Dice}(p_c, t_c)

    As MONAI's ``DiceCELoss`` with softmax, which can neither leave out voxels nor classes that the target does not
    show: of these there is no overlap to speak of. 0, with zero gradient, for a sample without voxels that count.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the samples.

    Shape:
        - input: logits ``NCH[WD]``; target: probabilities ``NCH[WD]``; mask: ``N1H[WD]``, default: all count.
        - output: scalar, or ``N`` when ``reduction="none"``.

    Raises:
        ValueError: When the shapes do not fit.

    Example:
        >>> target = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
        >>> SoftDiceCELoss()(200 * target, target)
        tensor(0.)
    """

    def __init__(self, reduction: LossReduction | str = LossReduction.MEAN) -> None:
        super().__init__(reduction=LossReduction(reduction).value)
        self.dice = DiceLoss(include_background=False, reduction="none")

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss."""
        if input.shape != target.shape or input.ndim < 3:
            raise ValueError(f"target {tuple(target.shape)} does not match logits {tuple(input.shape)}")
        if mask is None:
            mask = torch.ones_like(target[:, :1], dtype=torch.bool)
        if mask.shape != (len(input), 1, *input.shape[2:]):
            raise ValueError(f"mask {tuple(mask.shape)} does not match logits {tuple(input.shape)}")
        input = full_precision(input)
        inside, target = mask.to(input.dtype), target.to(input.dtype)
        logarithm = F.log_softmax(input, 1)
        target = target * inside
        entropy = -(logarithm * target).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
        dice = self.dice(logarithm.exp() * inside, target).flatten(1)
        shown = (target[:, 1:].flatten(2).amax(2) > 0).to(dice.dtype)
        return reduced(entropy + (dice * shown).sum(1) / shown.sum(1).clamp(min=1), self.reduction)
