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


"""Brain anatomy of synthetic subjects, from the ICBM152 tissue templates that nilearn ships."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from monai_rrr.data.field import Grid, smooth_noise

__all__ = ["Push", "Subject", "Tissue"]

Array = NDArray[np.float32]

_ORIGIN = (-98.0, -134.0, -72.0)  # MNI coordinates of the first template voxel at 1 mm
_CENTER = (0.0, -17.0, 6.0)  # MNI point that lies in the center of the frame
_VENTRICLES = (0.0, -14.0, 14.0)
_DEFORMATION = ((50.0, 2.6), (22.0, 1.7), (11.0, 1.2))  # knot distance and amplitude, both in mm


@lru_cache(maxsize=1)
def _templates() -> Tensor:
    from nilearn import datasets  # heavy, and only needed here

    maps = (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template, datasets.load_mni152_brain_mask)
    volumes = [np.asarray(load(resolution=1).dataobj, np.float32) for load in maps]
    return torch.from_numpy(np.stack(volumes))


def _sample(points: Array, channels: slice) -> Array:
    """Sample template channels at MNI points ``3 N`` (mm), trilinearly."""
    templates = _templates()[channels]
    size = torch.tensor(templates.shape[1:], dtype=torch.float32)
    unit = 2 * (torch.from_numpy(points).T - torch.tensor(_ORIGIN)) / (size - 1) - 1
    grid = unit.flip(1).contiguous()[None, None, None]
    return np.asarray(grid_sample(templates[None], grid, align_corners=True)[0, :, 0, 0])


@dataclass(frozen=True)
class Push:
    """Radial displacement of the tissue around a center: the mass effect of a lesion.

    Args:
        center: center in mm of the frame.
        radius_mm: width of the Gaussian within which tissue moves.
        strength: 0 is none; 0.5 doubles the size of what is at the center.
    """

    center: tuple[float, float, float]
    radius_mm: float
    strength: float

    def __call__(self, points: Array) -> Array:
        """Return where the tissue at ``points`` (``3 X Y Z``) came from."""
        offset = points - np.asarray(self.center, np.float32)[:, None, None, None]
        squared = (offset**2).sum(0) / np.float32(self.radius_mm**2)
        return np.asarray(points - np.float32(self.strength) * np.exp(-squared) * offset, np.float32)


@dataclass(frozen=True)
class Tissue:
    """Tissue fractions of a subject on a grid; they sum to 1 inside the brain and to 0 outside.

    Args:
        gm: gray matter, ``X Y Z``.
        wm: white matter.
        csf: cerebrospinal fluid, ventricles included.
        brain: brain mask.
        mni: template coordinates in mm, ``3 X Y Z``.
    """

    gm: Array
    wm: Array
    csf: Array
    brain: NDArray[np.bool_]
    mni: Array


@dataclass(frozen=True)
class Subject:
    """One synthetic head: size, pose, smooth deformation, ventricle size and atrophy.

    Args:
        seed: seed sequence of the anatomy; the same one gives the same head on every grid.
    """

    seed: np.random.SeedSequence

    def tissue(self, grid: Grid, push: Push | None = None) -> Tissue:
        """Sample the tissue fractions.

        Args:
            grid: where to sample.
            push: mass effect to apply first.
        """
        rng = np.random.default_rng(self.seed)
        scale = rng.normal(0.915, 0.02) * rng.normal(1.0, 0.02, 3)
        angle = np.deg2rad(rng.normal(0.0, (4.0, 2.0, 3.0)))
        sharpness, atrophy = rng.uniform(1.5, 2.3), rng.normal(0.1, 0.45)
        ventricles = float(np.clip(rng.normal(0.05, 0.22), -0.3, 0.45))
        strip = np.float32(rng.uniform(1.0, 1.035))  # how much of the outer CSF skull-stripping has taken
        points = grid.points()
        shift = np.zeros_like(points)
        for knot, amplitude in _DEFORMATION:
            shift += np.float32(amplitude) * smooth_noise(rng, grid, knot, channels=3)
        matrix = (_rotation(angle) / scale).astype(np.float32)
        outer = self._to_mni(strip * points + np.float32(0.8) * shift, matrix, 0.0)
        inner = self._to_mni((points if push is None else push(points)) + shift, matrix, ventricles)
        brain = _sample(outer.reshape(3, -1), slice(2, 3))[0].reshape(grid.shape) > 0.5
        gm, wm = fractions = np.zeros((2, *grid.shape), np.float32)
        fractions[:, brain] = np.clip(_sample(inner[:, brain], slice(0, 2)), 0, 1)
        csf = np.clip(1 - gm - wm, 0, 1)
        weights = np.stack([gm, wm, csf]) ** np.float32(sharpness)
        weights[2] *= np.float32(np.exp(atrophy))
        weights *= brain / np.maximum(weights.sum(0), 1e-6)
        return Tissue(weights[0], weights[1], weights[2], brain, inner)

    @staticmethod
    def _to_mni(points: Array, matrix: Array, ventricles: float) -> Array:
        mni = np.tensordot(matrix, points, axes=1) + np.asarray(_CENTER, np.float32)[:, None, None, None]
        return Push(_VENTRICLES, 32.0, ventricles)(mni)


def _rotation(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", angle).as_matrix())
