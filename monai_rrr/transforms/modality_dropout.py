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

"""Leave modalities out at random, so that a network learns to do without."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import RandomizableTransform

from monai_rrr.utils.enums import RRRKeys

__all__ = ["RandModalityDropoutd"]


class RandModalityDropoutd(RandomizableTransform):
    """Take a random subset of the modalities that a sample has away; at least one stays.

    With probability ``prob`` each subset that leaves at least one modality is as likely as the others; else all stay.
    A modality that is taken away is 0 everywhere and no longer ``present``, as if its file were missing.

    Args:
        prob: that anything is taken away.

    Shape:
        - image: ``MHW[D]``; present: ``M`` boolean.

    Raises:
        ValueError: When ``prob`` is no probability.

    Example:
        >>> dropout = RandModalityDropoutd(1.0).set_random_state(2)
        >>> out = dropout({"image": torch.ones(4, 2, 2), "present": torch.ones(4).bool()})
        >>> out["present"].tolist(), out["image"].sum((1, 2)).tolist()
        ([True, False, False, False], [4.0, 0.0, 0.0, 0.0])
    """

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be in [0, 1], got {prob}")
        super().__init__(prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with some of its modalities."""
        present = torch.as_tensor(data[RRRKeys.PRESENT]).bool()
        places = present.nonzero()[:, 0].tolist()
        self.randomize(None)
        draw = self.R.uniform()  # always, so that the option doesn't shift later ones
        if not self._do_transform or len(places) < 2:
            return dict(data)
        kept = 1 + int(draw * (2 ** len(places) - 1))
        stays = torch.zeros_like(present)
        for bit, place in enumerate(places):
            stays[place] = bool(kept >> bit & 1)
        image = data[RRRKeys.IMAGE] * stays.reshape(-1, *(1,) * (data[RRRKeys.IMAGE].ndim - 1))
        return {**data, RRRKeys.IMAGE: image, RRRKeys.PRESENT: stays}
