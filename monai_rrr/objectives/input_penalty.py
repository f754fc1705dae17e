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

"""Right for the right reasons: the gradient by the image must vanish where evidence is not allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.attribution.trace import INPUT, Trace
from monai_rrr.losses.reduction import full_precision, weighted_mean
from monai_rrr.objectives.evidence import allowed_evidence, brain_on, choose_classes
from monai_rrr.objectives.mask_control import CONTROLS

__all__ = ["InputGradientPenalty"]


@dataclass(frozen=True)
class InputGradientPenalty:
    r"""Squared gradient of the log probabilities of all classes by the image, outside the evidence mask (RRR).

    .. math:: L_b = \sum_{m(p) = 0} \Big( \frac{\partial}{\partial x(p)} \sum_k \log p_k \Big)^2

    averaged over the samples that have a mask; exactly 0 without one. Voxels count that no class allows, in each
    modality, inside the brain. One backward pass serves all classes; the loss needs double backward. It depends on the
    scale of image and logits: the weight must be tuned for each network. With two exclusive classes it vanishes for an
    undecided network (p = 1/2).

    Args:
        exclusive: softmax over the classes; otherwise a sigmoid for each, and both of its outcomes count.
        whole_image: count outside the brain as well.
        control: wrong masks on purpose, see :mod:`monai_rrr.objectives.mask_control`.
        seed: of random masks.

    Shape:
        - trace.logits: ``B K``, or ``B M K`` of several heads, whose log probabilities are summed.
        - batch: ``class_label``, ``evidence_mask`` and ``has_mask`` as
          :func:`~monai_rrr.objectives.evidence.allowed_evidence` reads them, ``brain`` where there is one.

    Raises:
        ValueError: When ``control`` is unknown, or the batch has no fitting mask.

    Reference:
        A. Ross, M. Hughes and F. Doshi-Velez, Right for the right reasons, IJCAI 2017, Eq. 1, second term. Differs from
        it in: their mask marks what is forbidden; mean over samples with a mask, not a sum over all.
    """

    exclusive: bool = False
    whole_image: bool = False
    control: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.control not in CONTROLS:
            raise ValueError(f"control must be one of {CONTROLS}, got {self.control!r}")

    @property
    def layers(self) -> tuple[str, ...]:
        """The image."""
        return (INPUT,)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the penalty."""
        size = trace.image.shape[2:]
        mask, has = allowed_evidence(trace, batch, choose_classes(trace, batch, "all"), size, self.control, self.seed)
        counts = torch.ones_like(mask[:, 0]) if self.whole_image else brain_on(batch, trace.image, size)
        logits = full_precision(trace.logits)
        if self.exclusive:
            total = F.log_softmax(logits, -1).sum()
        else:
            total = (F.logsigmoid(logits) + F.logsigmoid(-logits)).sum()
        source = trace.sources[INPUT]
        gradient = torch.autograd.grad(total, source, create_graph=torch.is_grad_enabled(), retain_graph=True)[0]
        outside = full_precision(trace.own(INPUT, gradient)) * (1 - mask.amax(1)) * counts
        return weighted_mean(outside.square().flatten(1).sum(1), has)
