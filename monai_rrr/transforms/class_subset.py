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

"""Which classes of a batch are decoded in a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_rrr.utils.seeds import step_generator

__all__ = ["RandomClassSubset"]


@dataclass(frozen=True)
class RandomClassSubset:
    """Draws the classes to decode for each sample: those present, the background, and random absent ones.

    Every sample gets the same number of classes, each once: the largest number of present ones in the batch, plus one
    for the background and ``absent``; rows with fewer present classes hold more absent ones. So the cost of a step
    follows the classes that are there, not all there are.

    The draw is a pure function of ``(seed, iteration, rank)``: a resumed run draws the same.

    Args:
        absent: how many absent classes at least, as far as there are any.
        background: class that counts as present everywhere, such as 0. Default: there is none.
        seed: random seed.

    Raises:
        ValueError: When ``absent`` is negative.

    Example:
        >>> RandomClassSubset(background=0)(torch.tensor([[0.0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])).shape
        torch.Size([2, 3])
    """

    absent: int = 1
    background: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.absent < 0:
            raise ValueError(f"absent must be at least 0, got {self.absent}")

    def __call__(self, class_label: Tensor, iteration: int = 0, rank: int = 0) -> Tensor:
        """Draw class indices ``BT``, on the device of ``class_label`` ``BK`` in {0, 1}; NaN counts as present."""
        if class_label.ndim != 2:
            raise ValueError(f"expected class_label of shape B K, got {tuple(class_label.shape)}")
        # on the CPU: the number of columns is needed there, and the draw must not depend on the device
        tags = class_label.detach().cpu()
        first = (tags > 0.5) | tags.isnan()
        if self.background is not None:
            first[:, self.background] = True
        generator = step_generator(self.seed, iteration, rank)
        key = torch.rand(tags.shape, generator=generator) + (~first).float()
        count = min(tags.shape[1], int(first.sum(1).max()) + self.absent)
        return key.argsort(1)[:, :count].to(class_label.device)
