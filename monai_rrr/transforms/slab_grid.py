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

"""Where a slab lies in a brain box, and which of its slices are tagged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import ensure_tuple_rep
from numpy.typing import NDArray
from torch import Tensor

from monai_rrr.utils.enums import REGIONS

__all__ = ["centered_matrix", "check_size", "check_spacing", "slab_slice_label", "slab_step"]

_LEAST_SHARE = 0.25


def check_size(size: Sequence[int]) -> tuple[int, int, int]:
    """Return a slab size ``X, Y, D`` as whole numbers."""
    if len(size) != 3 or any(int(n) != n or n < 1 for n in size):
        raise ValueError(f"roi_size must be three positive whole numbers (X, Y, D), got {tuple(size)}")
    return int(size[0]), int(size[1]), int(size[2])


def check_spacing(spacing: float | Sequence[float]) -> tuple[float, float, float]:
    """Return a voxel size in mm, one number per axis."""
    values = [float(s) for s in ensure_tuple_rep(spacing, 3)]
    if not all(0 < s < math.inf for s in values):
        raise ValueError(f"spacing must be positive (mm), got {spacing}")
    return values[0], values[1], values[2]


def slab_step(box: Mapping[Any, Any], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return the size of a slab voxel in voxels of the box, per axis.

    Raises:
        ValueError: When it is 2 or more, because linear interpolation would then skip voxels.
    """
    size = np.linalg.norm(np.asarray(box["affine"], dtype=np.float64)[:3, :3], axis=0)
    step: NDArray[np.float64] = np.asarray(spacing, dtype=np.float64) / size
    if (step > 2 - 1e-3).any():
        raise ValueError(
            f"slab spacing {tuple(spacing)} mm must be less than twice that of the brain box, "
            f"{tuple(size.round(3).tolist())} mm; build the cache with the slab's spacing"
        )
    return np.where(np.abs(step - 1) < 1e-4, 1.0, step)


def centered_matrix(step: NDArray[np.float64], size: Sequence[int], shape: Sequence[int]) -> NDArray[np.float64]:
    """Return slab voxel -> box voxel, 4x4, with both centers together.

    Where the voxel sizes are equal, the centers may be half a voxel apart, so that nothing is interpolated.
    """
    matrix = np.diag([*step, 1.0])
    offset = ((np.asarray(shape) - 1) - (np.asarray(size) - 1) * step) / 2
    matrix[:3, 3] = np.where(step == 1.0, np.floor(offset + 1e-6), offset)
    return matrix


def slab_slice_label(box: Mapping[Any, Any], matrix: NDArray[np.float64], depth: int) -> Tensor:
    """Return which slab slices are tagged: float32, ``3D``; NaN when the box has no ``tags``.

    A slab slice is as thick as its step. It is tagged when the tagged range covers at least a quarter of a slice of
    the case (or of the slab slice, when that is thinner) within it.
    """
    if box.get("tags") is None:
        return torch.full((len(REGIONS), depth), math.nan)
    extents = np.asarray(box["tags"], dtype=np.float64)
    if extents.shape != (len(REGIONS), 2):
        raise ValueError(f"tags must have the shape ({len(REGIONS)}, 2), got {extents.shape}")
    scale, offset = (float(v) for v in box["tag_grid"])
    thickness = abs(scale * matrix[2, 2])
    center = scale * (matrix[2, 2] * np.arange(depth) + matrix[2, 3]) + offset
    top = np.minimum(extents[:, 1:] + 0.5, center + thickness / 2)
    bottom = np.maximum(extents[:, :1] - 0.5, center - thickness / 2)
    # Comparisons with NaN are false: absent regions are tagged nowhere.
    tagged = top - bottom >= _LEAST_SHARE * min(1.0, thickness) - 1e-6
    return torch.from_numpy(tagged.astype(np.float32))
