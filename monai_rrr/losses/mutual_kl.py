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

"""Agreement of two class heads: Kullback-Leibler divergence at a temperature."""

from __future__ import annotations

import torch.nn.functional as F
from monai.utils import LossReduction
from torch import Tensor
from torch.nn.modules.loss import _Loss

from monai_rrr.losses.reduction import full_precision

__all__ = ["MutualKLLoss"]


class MutualKLLoss(_Loss):
    r"""How far a head's class probabilities are from those of a teacher head.

    .. math:: L = T^2\, \mathrm{KL}\big(p(z_\text{teacher} / T)\, \|\, p(z / T)\big)

    with :math:`p` the softmax over the classes, or, with ``bernoulli``, a sigmoid for each class. Zero for equal heads,
    positive otherwise. The teacher receives no gradient. At ``T = 10`` it is about an eighth of the squared
    difference of the margins: a regression of one head's margin on the other's.

    Args:
        temperature: ``T``; larger is softer.
        bernoulli: sigmoid per class instead of softmax.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over all but the class axis; over everything for ``bernoulli``.

    Shape:
        - input, target: logits of the head that learns and of the teacher, ``B K`` or ``... K``.
        - output: scalar, or ``...`` (``... K`` for ``bernoulli``) when ``reduction="none"``.

    Raises:
        ValueError: When the shapes differ or the temperature is not positive.

    Reference:
        Patel and Dolz, arXiv 2104.02488, the KD term; ``bernoulli`` is ours, for labels that are not exclusive.

    Example:
        >>> import torch
        >>> MutualKLLoss()(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]))
        tensor(0.)
    """

    def __init__(
        self,
        temperature: float = 10.0,
        bernoulli: bool = False,
        reduction: LossReduction | str = LossReduction.MEAN,
    ) -> None:
        super().__init__(reduction=LossReduction(reduction).value)
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature, self.bernoulli = temperature, bernoulli

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of ``input`` from ``target``."""
        if input.shape != target.shape:
            raise ValueError(f"logits {tuple(input.shape)} do not match logits {tuple(target.shape)}")
        student = full_precision(input) / self.temperature
        teacher = full_precision(target.detach()) / self.temperature
        if self.bernoulli:
            p = teacher.sigmoid()
            value = p * (F.logsigmoid(teacher) - F.logsigmoid(student))
            value = value + (1 - p) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
        else:
            log_p = teacher.log_softmax(-1)
            value = (log_p.exp() * (log_p - student.log_softmax(-1))).sum(-1)
        value = self.temperature**2 * value
        if self.reduction == LossReduction.MEAN.value:
            return value.mean()
        return value.sum() if self.reduction == LossReduction.SUM.value else value
