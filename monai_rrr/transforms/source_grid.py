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

"""From the grid of a slab back to the voxels of the source file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["to_source_grid"]

_TOLERANCE = 1e-4


def to_source_grid(volume: Tensor | NDArray[Any], geometry: Mapping[str, Any], mode: str = "bilinear") -> NDArray[Any]:
    """Resample heatmaps or masks from the grid of :class:`WholeVolumed` to the source file's own voxels and axis order.

    The axes of both grids are parallel, so each axis is interpolated on its own. Outside the slab the result is 0.

    Args:
        volume: on the slab's grid.
        geometry: ``geometry`` of :class:`WholeVolumed`, without batch axis.
        mode: ``"bilinear"`` (linear, float32) or ``"nearest"`` (keeps the kind of numbers).

    Shape:
        - volume: ``CXYZ``.
        - output: ``C`` and ``source_shape``; write it with ``source_affine``.

    Raises:
        ValueError: When ``mode`` is unknown, ``volume`` is not ``CXYZ``, or the axes of the grids are not parallel.

    Example:
        >>> geometry = dict(affine=np.diag([2.0, 2, 2, 1]), source_affine=np.eye(4), source_shape=(4, 4, 4))
        >>> to_source_grid(np.ones((1, 2, 2, 2), np.uint8), geometry, mode="nearest").shape
        (1, 4, 4, 4)
    """
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"mode must be 'bilinear' or 'nearest', got {mode!r}")
    array = volume.detach().cpu().numpy() if isinstance(volume, Tensor) else np.asarray(volume)
    if array.ndim != 4:
        raise ValueError(f"volume must have the shape CXYZ, got {array.shape}")
    if mode == "bilinear":
        array = array.astype(np.float32)
    shape = [int(n) for n in np.asarray(geometry["source_shape"])]
    to_slab = np.linalg.inv(np.asarray(geometry["affine"], dtype=np.float64)) @ np.asarray(
        geometry["source_affine"], dtype=np.float64
    )
    linear = to_slab[:3, :3]
    axes = np.abs(linear).argmax(axis=0)
    only = np.zeros((3, 3), dtype=bool)
    only[axes, range(3)] = True
    if sorted(axes) != [0, 1, 2] or np.abs(linear[~only]).max() > _TOLERANCE:
        raise ValueError(f"the slab's axes must be parallel to those of the source file, got {linear.tolist()}")
    array = np.ascontiguousarray(array.transpose(0, *(1 + int(a) for a in axes)))
    for axis in range(3):
        position = linear[axes[axis], axis] * np.arange(shape[axis]) + to_slab[axes[axis], 3]
        array = _resample_axis(array, axis + 1, position, mode)
    return array


def _resample_axis(array: NDArray[Any], axis: int, position: NDArray[np.float64], mode: str) -> NDArray[Any]:
    count = array.shape[axis]
    inside = (position >= -0.5 - _TOLERANCE) & (position <= count - 0.5 + _TOLERANCE)
    rows = np.flatnonzero(inside)
    clamped = np.clip(position[rows], 0, count - 1)
    if mode == "nearest" or np.allclose(clamped, np.round(clamped), rtol=0, atol=_TOLERANCE):
        taken = np.take(array, np.floor(clamped + 0.5).astype(int), axis=axis)
        out = np.zeros((*array.shape[:axis], len(position), *array.shape[axis + 1 :]), dtype=array.dtype)
        out[(slice(None),) * axis + (rows,)] = taken
        return out
    below = np.minimum(np.floor(clamped).astype(int), max(count - 2, 0))
    weight = np.zeros((len(position), count), dtype=np.float32)
    fraction = (clamped - below).astype(np.float32)
    weight[rows, below] = 1 - fraction
    if count > 1:
        weight[rows, below + 1] = fraction
    # products of matrices as they lie in memory: no axis is moved, nothing is copied
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    parts = array.reshape(-1, count, int(np.prod(after)))
    product: NDArray[Any] = weight @ parts if after else parts[..., 0] @ weight.T
    return product.reshape(*before, len(position), *after)
