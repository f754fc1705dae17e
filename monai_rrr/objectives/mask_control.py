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

"""Wrong masks on purpose: what gains as much with them was not right for the right reasons."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["CONTROLS", "controlled_mask"]

CONTROLS = ("none", "random", "shuffled", "inverted")
_PLACES = 8


def controlled_mask(
    mask: Tensor, has: Tensor, brain: Tensor, batch: Mapping[str, Any], control: str, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Replace evidence masks by wrong ones.

    Args:
        mask: ``B C M H W [D]``.
        has: ``B`` boolean, which samples have one.
        brain: ``B 1 H W [D]``.
        batch: ``case_id`` (or else ``iteration``), so that a case keeps its wrong mask.
        control: ``"none"``; ``"random"`` (the same mask mirrored and moved to a random place, the one of eight with the
            largest part inside the brain); ``"shuffled"`` (that of the next sample of the batch that has one; a sample
            that is alone with its mask loses it, so give small cohorts shuffled lists instead, see
            :func:`monai_rrr.data.keep_labels`); ``"inverted"`` (the rest of the brain).
        seed: of the random places.

    Returns:
        mask and ``has``.
    """
    if control == "inverted":
        return (1 - mask) * brain.unsqueeze(1), has
    if control == "shuffled":
        order = torch.argsort((~has).int(), stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        count = has.sum()
        return mask[order[(rank + 1) % count.clamp(min=1)]], has & (count > 1)
    if control == "random":
        names = batch.get("case_id", [f"{batch.get('iteration', 0)}-{index}" for index in range(len(mask))])
        moved = [
            misplaced(one, inside[0] > 0, zlib.crc32(f"{seed}:{name}".encode()))
            for one, inside, name in zip(mask, brain, names, strict=True)
        ]
        return torch.stack(moved), has
    return mask, has


def misplaced(mask: Tensor, brain: Tensor, key: int) -> Tensor:
    """Mirror and shift a mask ``C M H W [D]`` to a random place of the brain ``H W [D]``; its size stays the same."""
    generator = torch.Generator().manual_seed(key)
    dims = list(range(-brain.ndim, 0))
    mirrored = [dim for dim in dims if float(torch.rand((), generator=generator)) < 0.5]
    mask = mask.flip(mirrored)
    places, occupied = brain.nonzero(), mask.flatten(0, 1).amax(0) > 0
    if not len(places) or not occupied.any():
        return mask
    center = occupied.nonzero().float().mean(0)
    best, overlap = mask, -1
    for draw in torch.rand(_PLACES, generator=generator).tolist():
        shift = (places[int(draw * len(places))].float() - center).round().long().tolist()
        inside = int((occupied.roll(shift, dims) & brain).sum())
        if inside > overlap:
            best, overlap = mask.roll(shift, dims), inside
    return best
