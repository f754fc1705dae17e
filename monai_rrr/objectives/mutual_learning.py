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

"""The class heads of the modalities learn from each other (WSS-CMER)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.mutual_kl import MutualKLLoss
from monai_rrr.losses.reduction import weighted_mean

__all__ = ["MutualLearning"]


@dataclass(frozen=True)
class MutualLearning:
    r"""Divergence of each modality's class probabilities from those of every other modality present.

    .. math:: L_\mathrm{KD} = \frac{1}{n (n-1)} \sum_{i \ne j} T^2\,
              \mathrm{KL}\big(\mathrm{Bern}\,\sigma(z^j / T)\, \|\, \mathrm{Bern}\,\sigma(z^i / T)\big)

    averaged over samples, views and classes; the teacher ``j`` receives no gradient. One modality gives 0.

    Args:
        temperature: ``T``.

    Shape:
        - trace.logits: ``B M K``; batch: ``present`` ``B M``.

    Raises:
        ValueError: When the temperature is not positive.

    Reference:
        Patel and Dolz, arXiv 2104.02488, the KD term, with a sigmoid per class instead of a 2-way softmax.
    """

    temperature: float = 10.0

    def __post_init__(self) -> None:
        MutualKLLoss(self.temperature)

    @property
    def layers(self) -> tuple[str, ...]:
        """No layer is needed."""
        return ()

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        logits = trace.logits
        present = batch["present"].to(logits.device).float()
        pupil, teacher = torch.broadcast_tensors(logits.unsqueeze(2), logits.unsqueeze(1))
        value = MutualKLLoss(self.temperature, bernoulli=True, reduction="none")(pupil, teacher).mean(3)
        different = 1 - torch.eye(logits.shape[1], device=logits.device)
        return weighted_mean(value, present.unsqueeze(2) * present.unsqueeze(1) * different)
