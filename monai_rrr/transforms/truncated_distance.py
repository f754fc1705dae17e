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

"""Signed distance to the boundary of a mask, up to a limit, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["truncated_distance"]


def truncated_distance(mask: Tensor, spacing: Sequence[float], limit: float = 8.0) -> Tensor:
    """Euclidean distance in mm, positive inside, negative outside, clipped to +-``limit``.

    The distance to the nearest voxel of the other side, less half of the smallest spacing, so that both sides are
    alike. Exact up to the limit: squared distances are minimized one axis at a time over the voxels within reach.
    MONAI's ``distance_transform_edt`` has no limit, but leaves the device, unless cuCIM is installed, and waits for it.

    Args:
        mask: ``BC`` and up to three spatial axes, boolean.
        spacing: mm per voxel of each spatial axis.
        limit: mm.

    Returns:
        shape of ``mask``, float32; without a boundary ``+limit`` where the mask is set, else ``-limit``.

    Raises:
        ValueError: When the spacing does not fit, or spacing or limit are not positive.

    Example:
        >>> truncated_distance(torch.tensor([[[False, False, True, True]]]), [2.0])
        tensor([[[-3., -1.,  1.,  3.]]])
    """
    if len(spacing) != mask.ndim - 2:
        raise ValueError(f"spacing must have {mask.ndim - 2} values, got {tuple(spacing)}")
    if min(*spacing, limit) <= 0:
        raise ValueError(f"spacing and limit must be positive, got {tuple(spacing)} and {limit}")
    inside = mask.bool()
    half = min(spacing) / 2
    reach = limit + half
    to_outside, to_inside = (_distance(~inside, spacing, reach), _distance(inside, spacing, reach))
    return torch.where(inside, to_outside - half, half - to_inside).clamp(-limit, limit)


def _distance(target: Tensor, spacing: Sequence[float], reach: float) -> Tensor:
    """Distance to the nearest voxel of the target, more than ``reach`` where there is none within it."""
    far = (2 * reach) ** 2
    squared = torch.where(target, 0.0, far)
    for axis, step in enumerate(spacing, start=2):
        count = min(ceil(reach / step), target.shape[axis] - 1)
        pad = [0] * (2 * (target.ndim - axis))
        pad[-1] = pad[-2] = count
        wide = F.pad(squared, pad, value=far)
        for offset in range(-count, count + 1):
            moved = wide.narrow(axis, count + offset, target.shape[axis])
            squared = torch.minimum(squared, moved + (offset * step) ** 2)
    return squared.sqrt()
