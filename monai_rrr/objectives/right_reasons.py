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

"""Evidence must lie where a mask allows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_rrr.attribution.attributor import Attributor
from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.evidence import EvidenceLoss
from monai_rrr.losses.isnet import ISNetLoss
from monai_rrr.losses.reduction import weighted_mean
from monai_rrr.objectives.evidence import CLASSES, allowed_evidence, brain_on, choose_classes, heatmaps_of
from monai_rrr.objectives.mask_control import CONTROLS

__all__ = ["RightReasons"]


@dataclass(frozen=True)
class RightReasons:
    r"""Distance of the heatmaps from the evidence masks, for the samples that have one.

    .. math:: L = \sum_b \text{has}_b\, L_b / \max\Big(1, \sum_b \text{has}_b\Big), \qquad
              L_b = \operatorname{mean}_{c \text{ chosen}} l(H_{bc}, m_{bc})

    Exactly 0, with a zero gradient, when no sample of the batch has a mask, or none of its classes is chosen. Compared
    at the resolution of the heatmap, over the brain. A class whose mask is empty does not count, except for the losses
    that ask for no evidence outside: for them all of its evidence is outside. Where the heatmap keeps the modality
    axis, sums and maxima run over the modalities as well, and the mask may differ between them.

    Args:
        attribute: makes the heatmaps; any attributor.
        loss: ``"isnet"``, a kind of :class:`~monai_rrr.losses.EvidenceLoss`, or one of these losses with
            ``reduction="none"``. ``"energy"`` is cheap and needs few masks; ``"l2"`` is the external supervision of
            GAIN.
        classes: ``"positive"``, ``"one"`` (drawn for each sample) or ``"all"``.
        sigmoid: take the heatmaps as logits; for the class maps of
            :class:`~monai_rrr.networks.MultimodalCAMNet`.
        whole_image: compare outside the brain as well.
        control: wrong masks on purpose: ``"random"``, ``"shuffled"``, ``"inverted"``; see
            :mod:`monai_rrr.objectives.mask_control`.
        seed: of the drawn classes and random masks.

    Shape:
        - batch: ``class_label`` ``B`` or ``B K``; ``evidence_mask`` and ``has_mask`` as
          :func:`~monai_rrr.objectives.evidence.allowed_evidence` reads them; ``brain`` and ``present`` where there are.

    Raises:
        ValueError: When an argument is unknown, or the batch has no fitting mask.

    Reference:
        K. Li et al., Tell me where to look, CVPR 2018, Eq. 7 (``"l2"``); others at
        :class:`~monai_rrr.losses.EvidenceLoss` and :class:`~monai_rrr.losses.ISNetLoss`.
    """

    attribute: Attributor
    loss: str | EvidenceLoss | ISNetLoss = "energy"
    classes: str = "positive"
    sigmoid: bool = False
    whole_image: bool = False
    control: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classes not in CLASSES:
            raise ValueError(f"classes must be one of {CLASSES}, got {self.classes!r}")
        if self.control not in CONTROLS:
            raise ValueError(f"control must be one of {CONTROLS}, got {self.control!r}")
        if self._loss().reduction != "none":
            raise ValueError(f"the loss must have reduction 'none', got {self._loss().reduction!r}")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return self.attribute.layers

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        chosen = choose_classes(trace, batch, self.classes, self.seed)
        maps = heatmaps_of(self.attribute, trace, batch, chosen.class_idx, self.sigmoid)
        size = maps.shape[3:]
        mask, has = allowed_evidence(trace, batch, chosen, size, self.control, self.seed)
        brain = (
            torch.ones_like(mask[:, :1, :1]) if self.whole_image else brain_on(batch, trace.image, size).unsqueeze(1)
        )
        loss = self._loss()
        value, weight = loss(maps, mask, brain), chosen.weight
        if not self._takes_empty(loss):
            weight = weight * (mask * brain).flatten(2).amax(2)
        return weighted_mean((value * weight).sum(1) / weight.sum(1).clamp(min=1), has * (weight.sum(1) > 0))

    def _loss(self) -> EvidenceLoss | ISNetLoss:
        if not isinstance(self.loss, str):
            return self.loss
        return ISNetLoss(reduction="none") if self.loss == "isnet" else EvidenceLoss(self.loss, reduction="none")

    @staticmethod
    def _takes_empty(loss: EvidenceLoss | ISNetLoss) -> bool:
        return isinstance(loss, EvidenceLoss) and loss.kind in loss.takes_empty_masks
