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

"""Masks that only some cases have, in a form that batches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Transform

from monai_rrr.utils.enums import RRRKeys

__all__ = ["OptionalMaskd"]


class OptionalMaskd(Transform):
    """Say whether there is a mask, and put zeros where there is none, so that mixed samples collate.

    ``has_mask`` (bool) tells terms which of the two it is; zeros in place of a mask are never to be looked at.

    Args:
        num_classes: channels of a mask.
        key: key of the mask, ``KH[WD]``.
        image_key: key of the image, ``MH[WD]``, that gives the size.

    Raises:
        ValueError: When a mask has other channels or another size.

    Example:
        >>> sample = OptionalMaskd(3)({"image": torch.rand(4, 8, 8, 8)})
        >>> sample["label"].shape, sample["has_mask"]
        (torch.Size([3, 8, 8, 8]), tensor(False))
    """

    def __init__(self, num_classes: int, key: str = RRRKeys.LABEL, image_key: str = RRRKeys.IMAGE) -> None:
        self.num_classes, self.key, self.image_key = num_classes, key, image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with ``label`` and ``has_mask``."""
        result = dict(data)
        shape = (self.num_classes, *data[self.image_key].shape[1:])
        if self.key in data and tuple(data[self.key].shape) != shape:
            raise ValueError(f"expected a mask of shape {shape}, got {tuple(data[self.key].shape)}")
        result["has_mask"] = torch.tensor(self.key in data)
        result[self.key] = torch.as_tensor(data[self.key]).float() if self.key in data else torch.zeros(shape)
        return result
