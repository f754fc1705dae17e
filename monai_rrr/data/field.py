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


"""Smooth random fields in millimeters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "smooth_noise", "fractal_noise"]

Array = NDArray[np.float32]

_REACH = (90.0, 106.0, 86.0)  # half size in mm of the box in which fields are defined
_STD = 0.479365**1.5  # standard deviation of a cubic B-spline field with white coefficients of variance 1


@dataclass(frozen=True)
class Grid:
    """Voxel centers of a box, in mm from the center of the frame; x to the right, y to the front, z upwards.

    Args:
        x: ascending centers along the first axis.
        y: ascending centers along the second axis.
        z: ascending centers along the third axis.
    """

    x: Array
    y: Array
    z: Array

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        return len(self.x), len(self.y), len(self.z)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in milliliters."""
        return float(np.prod([axis[1] - axis[0] for axis in (self.x, self.y, self.z)])) / 1000.0

    def points(self) -> Array:
        """Return the coordinates of all voxels, ``3 X Y Z``."""
        return np.stack(np.meshgrid(self.x, self.y, self.z, indexing="ij"))


def _basis(centers: Array, reach: float, knot_mm: float) -> Array:
    position = (centers.astype(np.float64) + reach) / knot_mm
    cell = np.floor(position).astype(int)
    t = position - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    matrix = np.zeros((len(centers), int(2 * reach / knot_mm) + 4), np.float32)
    np.put_along_axis(matrix, cell[:, None] + np.arange(4), weights.astype(np.float32), axis=1)
    return matrix


def smooth_noise(rng: np.random.Generator, grid: Grid, knot_mm: float, channels: int = 1) -> Array:
    """Evaluate a random cubic B-spline field of mean 0 and standard deviation 1.

    The field lives in physical space: the same generator state gives the same field on a coarse and on a fine grid.

    Args:
        rng: source of the coefficients.
        grid: where to evaluate, within 90 x 106 x 86 mm of the center.
        knot_mm: distance of the knots in mm, about a third of the visible wavelength.
        channels: number of independent fields.

    Returns:
        Fields, ``channels X Y Z``.

    Example:
        >>> axis = np.linspace(-60, 60, 41, dtype=np.float32)
        >>> smooth_noise(np.random.default_rng(0), Grid(axis, axis, axis), knot_mm=10.0).shape
        (1, 41, 41, 41)
    """
    x, y, z = (_basis(axis, reach, knot_mm) for axis, reach in zip((grid.x, grid.y, grid.z), _REACH, strict=True))
    white = rng.standard_normal((channels, x.shape[1], y.shape[1], z.shape[1]), dtype=np.float32) / np.float32(_STD)
    field = x @ (white @ z.T).reshape(channels, x.shape[1], -1)
    return np.asarray(y @ field.reshape(channels, len(x), y.shape[1], len(z)), np.float32)


def fractal_noise(rng: np.random.Generator, grid: Grid, knot_mm: float, octaves: int = 3, decay: float = 0.5) -> Array:
    """Sum of :func:`smooth_noise` at halved knots and decaying amplitudes, scaled to standard deviation 1.

    Args:
        rng: source of the coefficients.
        grid: where to evaluate.
        knot_mm: knot distance of the coarsest octave in mm.
        octaves: number of scales.
        decay: amplitude ratio of one octave to the previous one.

    Returns:
        Field, ``X Y Z``.
    """
    total = np.zeros(grid.shape, np.float32)
    for octave in range(octaves):
        total += np.float32(decay**octave) * smooth_noise(rng, grid, knot_mm / 2**octave)[0]
    return np.asarray(total / np.float32(sum(decay ** (2 * octave) for octave in range(octaves)) ** 0.5))
