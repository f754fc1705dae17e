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

"""Signed distance to the surface of a mask, in mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

__all__ = ["signed_distance"]


def signed_distance(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float32]:
    """Distance of every voxel center to the surface of a mask in mm; positive inside, negative outside.

    The surface lies halfway between the centers of voxels inside and outside. The distance between two centers alone
    would put it half a voxel too far away on either side, so that the same offset in mm would mean something else on
    another grid. Planes along the grid are exact; distances from a digital ball err by a fifth of a voxel.
    :func:`~monai_rrr.transforms.truncated_distance.truncated_distance` gives the same up to a limit, on any device.
    The border of the image is no surface. An empty mask is infinitely far away (``-inf`` everywhere), a mask that fills
    the image has its surface nowhere (``+inf``).

    Args:
        mask: True inside.
        spacing: voxel size in mm, one value per axis.

    Shape:
        - mask: ``X[YZ]``; output: the same, float32

    Raises:
        ValueError: When the spacing is not positive, or has another length than the mask has axes.

    Example:
        >>> signed_distance(np.array([False, False, True, True]), [2.0]).tolist()
        [-3.0, -1.0, 1.0, 3.0]
    """
    inside = np.asarray(mask, dtype=bool)
    voxel = np.asarray(spacing, dtype=np.float64)
    if voxel.shape != (inside.ndim,) or not ((voxel > 0) & np.isfinite(voxel)).all():
        raise ValueError(f"spacing expected {inside.ndim} positive values in mm, got {list(spacing)}")
    if not inside.any() or inside.all():
        return np.full(inside.shape, np.inf if inside.any() else -np.inf, np.float32)
    return np.where(inside, _to_surface(inside, voxel), -_to_surface(~inside, voxel)).astype(np.float32)


def _to_surface(region: NDArray[np.bool_], voxel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the voxels of a region to its surface; what stands outside of it is meaningless."""
    if np.ptp(voxel) == 0:
        return np.asarray(distance_transform_edt(region, sampling=voxel) - voxel[0] / 2)
    distance, nearest = distance_transform_edt(region, sampling=voxel, return_indices=True)
    size = voxel.reshape(-1, *(1,) * region.ndim)
    step = (nearest - np.indices(region.shape)) * size
    half = 0.5 * np.sqrt(((step * size) ** 2).sum(0)) / np.maximum(distance, 1e-9)
    return np.asarray(distance - half)
