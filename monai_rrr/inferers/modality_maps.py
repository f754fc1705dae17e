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

"""From class maps of every modality to heatmaps in [0, 1], the fused one first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["modality_maps"]


def modality_maps(raw: Tensor, logits: Tensor, share: Tensor, available: Tensor, size: Sequence[int]) -> Tensor:
    """Return the fused heatmaps and those of every modality, on the grid of the image.

    Args:
        raw: class maps, logits, ``B M K h w D``.
        logits: of the modalities, ``B M K``; where one of an image is not finite, its maps are NaN, as is any voxel
            that is not: a sigmoid would hide infinite ones.
        share: weights of the modalities, ``B M K``.
        available: ``B M``; maps of absent modalities are 0.
        size: ``H W D``.

    Returns:
        ``B (1+M)K H W D``, the fused ones first.
    """
    sound = torch.isfinite(logits).flatten(1).all(1).view(-1, 1, 1, 1, 1, 1) & torch.isfinite(raw)
    maps = torch.where(sound, torch.sigmoid(raw), torch.nan) * available[:, :, None, None, None, None]
    fused = (maps * share[:, :, :, None, None, None]).sum(1, keepdim=True)
    every = torch.cat([fused, maps], 1).flatten(1, 2)
    if every.shape[2:] != size:
        every = F.interpolate(every, size=size, mode="trilinear", align_corners=False)
    return every
