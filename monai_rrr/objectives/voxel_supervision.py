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

"""Full supervision by masks: the upper reference of the weakly supervised methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.pooling import modality_shares
from monai_rrr.attribution.trace import Trace
from monai_rrr.objectives.views import brain_at

__all__ = ["VoxelSupervision"]


@dataclass(frozen=True)
class VoxelSupervision:
    r"""Dice and binary cross-entropy of the fused class maps with the mask, at the resolution of the maps.

    The maps of the modalities present are fused as they are at inference: sigmoid maps, averaged by reliability. The
    cross-entropy is binary, as regions are nested: the softmax of MONAI's ``DiceCELoss`` over several channels would
    make them exclude each other.

    Reads masks: for upper references and for cases that have them, never in the tag-only bundle.

    Args:
        attribute: the class maps, in logits.
        reliability: layer that holds the weights ``M K`` of the modalities.

    Shape:
        - maps: ``B M K h w d``; batch: ``label`` ``B K H W D`` in [0, 1], ``present`` ``B M``, ``brain`` ``B 1 H W D``.

    Raises:
        ValueError: When the batch has no masks.
    """

    attribute: ClassMap = ClassMap()  # noqa: RUF009  (frozen)
    reliability: str = "reliability"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return (*self.attribute.layers, self.reliability)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        if "label" not in batch:
            raise ValueError(f"full supervision needs masks as 'label', got a batch with {sorted(map(str, batch))}")
        maps = torch.sigmoid(self.attribute(trace).float())
        share = modality_shares(trace.features[self.reliability].detach(), batch["present"].to(maps))
        size = (maps.shape[-3], maps.shape[-2], maps.shape[-1])
        fused = (maps * share[..., None, None, None]).sum(1) * brain_at(batch, size)
        label = F.adaptive_avg_pool3d(batch["label"].to(fused), size)
        dice: Tensor = DiceLoss(batch=True)(fused, label)
        return dice + F.binary_cross_entropy(fused.clamp(1e-6, 1 - 1e-6), label)
