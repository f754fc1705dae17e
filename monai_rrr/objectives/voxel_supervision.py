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

import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.trace import Trace
from monai_rrr.objectives.views import brain_at

__all__ = ["VoxelSupervision"]


@dataclass(frozen=True)
class VoxelSupervision:
    """Dice and cross-entropy of every present modality's class maps with the mask, at the resolution of the maps.

    The cross-entropy is binary, as regions are nested: the softmax of MONAI's ``DiceCELoss`` over several channels
    would make them exclude each other.

    Reads masks: for upper references and for cases that have them, never in the tag-only bundle.

    Args:
        attribute: the class maps, in logits.

    Shape:
        - maps: ``B M K h w d``; batch: ``label`` ``B K H W D`` in [0, 1], ``present`` ``B M``, ``brain`` ``B 1 H W D``.

    Raises:
        ValueError: When the batch has no masks.
    """

    attribute: ClassMap = ClassMap()  # noqa: RUF009  (frozen)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return self.attribute.layers

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        if "label" not in batch:
            raise ValueError(f"full supervision needs masks as 'label', got a batch with {sorted(map(str, batch))}")
        maps = self.attribute(trace).float()
        label = (
            F.adaptive_avg_pool3d(batch["label"].to(maps), (maps.shape[-3], maps.shape[-2], maps.shape[-1]))
            .unsqueeze(1)
            .expand_as(maps)
        )
        rows = batch["present"].to(maps.device).flatten()
        outside = ~brain_at(batch, maps.shape[-3:]).unsqueeze(1).expand_as(maps)
        maps = maps.masked_fill(outside, -10.0)
        maps, label = maps.flatten(0, 1)[rows], label.flatten(0, 1)[rows]
        dice: Tensor = DiceLoss(sigmoid=True, batch=True)(maps, label)
        return dice + F.binary_cross_entropy_with_logits(maps, label)
