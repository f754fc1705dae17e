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

"""Nested regions have nested heatmaps, as a term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.nesting import NestingLoss
from monai_rrr.objectives.views import brain_at

__all__ = ["Nesting"]


@dataclass(frozen=True)
class Nesting:
    """ET inside TC inside WT, in the heatmaps of every modality present.

    See :class:`~monai_rrr.losses.nesting.NestingLoss`; classes run from the outermost to the innermost.

    Args:
        attribute: the class maps, in logits; compared after a sigmoid.

    Shape:
        - maps: ``B M K h w d``; batch: ``present`` ``B M``, ``brain`` ``B 1 H W D``.
    """

    attribute: ClassMap = ClassMap()  # noqa: RUF009  (frozen)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return self.attribute.layers

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        maps = torch.sigmoid(self.attribute(trace).float())
        brain = (
            brain_at(batch, maps.shape[-3:]).unsqueeze(1)
            & batch["present"].to(maps.device)[:, :, None, None, None, None]
        )
        loss: Tensor = NestingLoss()(maps.flatten(0, 1), brain.flatten(0, 1))
        return loss
