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
    """Distance of every voxel center to the surface of a mask in mm, positive inside, clipped to +-``limit``.

    The same as :func:`~monai_rrr.utils.distance.signed_distance`, clipped, for batches on any device: squared distances
    are minimized one axis at a time over the voxels within reach, so that it is exact up to the limit and nothing waits
    for the device. SciPy's, which the other one uses, has no limit, but leaves the device, as MONAI's
    ``distance_transform_edt`` does unless cuCIM is installed.

    Args:
        mask: ``BC`` and up to three spatial axes, boolean.
        spacing: mm per voxel of each spatial axis.
        limit: mm.

    Returns:
        shape of ``mask``, float32; without a surface ``+limit`` where the mask is set, else ``-limit``.

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
    to_outside, to_inside = (_to_surface(target, spacing, limit) for target in (~inside, inside))
    return torch.where(inside, to_outside, -to_inside).clamp(-limit, limit)


def _to_surface(target: Tensor, spacing: Sequence[float], limit: float) -> Tensor:
    """Distance to the nearest voxel of the target less half a voxel; more than the limit where none is in reach."""
    reach = limit + max(spacing) / 2
    even = min(spacing) == max(spacing)
    squared = torch.where(target, 0.0, (2 * reach) ** 2)
    voxel = torch.zeros_like(squared)  # (distance times size of a voxel in its direction) squared, on uneven grids
    for axis, step in enumerate(spacing, start=2):
        count = min(ceil(reach / step), target.shape[axis] - 1)
        pad = [0] * (2 * (target.ndim - axis))
        pad[-1] = pad[-2] = count
        wide, wide_voxel = F.pad(squared, pad, value=(2 * reach) ** 2), voxel if even else F.pad(voxel, pad)
        for offset in range(-count, count + 1):
            moved = wide.narrow(axis, count + offset, target.shape[axis]) + (offset * step) ** 2
            if not even:
                size = wide_voxel.narrow(axis, count + offset, target.shape[axis]) + (offset * step * step) ** 2
                voxel = torch.where(moved < squared, size, voxel)
            squared = torch.minimum(squared, moved)
    distance = squared.sqrt()
    return distance - (spacing[0] / 2 if even else voxel.sqrt() / (2 * distance.clamp(min=1e-9)))
