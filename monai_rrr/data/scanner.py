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


"""A synthetic scanner: from tissue and tumor fractions to the four MR contrasts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_rrr.data.anatomy import Tissue
from monai_rrr.data.field import Grid, fractal_noise, smooth_noise
from monai_rrr.data.tumor import Lesion

__all__ = ["Distractors", "Scanner"]

Array = NDArray[np.float32]

# Mean signal relative to white matter in T1; the order of the columns is that of _PARTS.
_PARTS = ("gm", "wm", "csf", "ed", "solid", "liquid", "et", "hyper", "vessel")
_SIGNAL = {
    "t1": (0.84, 1.0, 0.42, 0.80, 0.80, 0.50, 0.78, 0.88, 0.85),
    "t1ce": (0.88, 1.0, 0.42, 0.82, 0.82, 0.52, 1.60, 0.90, 1.90),
    "t2": (0.95, 0.74, 2.10, 1.45, 1.50, 2.00, 1.15, 1.25, 0.60),
    "flair": (1.0, 0.88, 0.54, 1.50, 1.50, 0.85, 1.40, 1.45, 0.80),
}
_SPREAD = (0.03, 0.0, 0.10, 0.10, 0.10, 0.10, 0.12, 0.10, 0.15)


@dataclass(frozen=True)
class Distractors:
    """Fractions of what is bright without being tumor, ``X Y Z`` each.

    Args:
        hyperintensity: age-related lesions of the white matter: periventricular caps and deep spots.
        vessel: veins, sinuses and choroid plexus, which take up contrast agent.
    """

    hyperintensity: Array
    vessel: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, tissue: Tissue, grid: Grid, whole: Array) -> Distractors:
        """Draw distractors into healthy tissue; ``whole`` is the fraction of the tumor."""
        age = float(rng.beta(1.2, 1.6))
        x, y, z = tissue.mni
        ventricle = np.exp(-(((x / 30) ** 2 + ((y + 18) / 48) ** 2 + ((z - 14) / 24) ** 2) ** 2))
        caps = fractal_noise(rng, grid, 12.0) + 6.0 * ventricle * tissue.wm * (1 - tissue.wm) * 2 - 3.0 + 1.6 * age
        spots = fractal_noise(rng, grid, 4.5, octaves=2) - 3.6 + 1.5 * age
        hyper = np.maximum(_step(caps, 0.35), _step(spots, 0.25)) * tissue.wm * (z > -15) * (1 - whole)
        return cls(np.asarray(hyper, np.float32), cls._vessels(rng, tissue, grid) * (1 - whole))

    @staticmethod
    def _vessels(rng: np.random.Generator, tissue: Tissue, grid: Grid) -> Array:
        x, y, z = tissue.mni
        first, second = smooth_noise(rng, grid, 9.0, channels=2)
        tubes = np.exp(-(first**2 + second**2) / 0.04) * np.clip(1.2 * tissue.csf + 0.3 * tissue.gm, 0, 1)
        plexus = _step(smooth_noise(rng, grid, 4.0)[0], 0.3) * (tissue.csf > 0.5)
        plexus = plexus * (np.abs(x) < 32) * (np.abs(y + 32) < 14) * (np.abs(z - 8) < 14)
        sagittal = np.exp(-((x / 2.5) ** 2)) * (y < 35) * ((z > 45) | (y < -75))
        transverse = (y < -45) * np.exp(-(((z + 22 + 0.12 * np.abs(x)) / 6) ** 2)) * (np.abs(x) > 8)
        sinus = np.maximum(sagittal, transverse) * tissue.csf * rng.uniform(0, 1.3)
        return np.asarray(np.clip(np.maximum(np.maximum(tubes, 0.6 * plexus), sinus), 0, 1), np.float32)


def _step(x: Array, width: float) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(x / width)), np.float32)


@dataclass(frozen=True)
class Scanner:
    """Acquisition of one modality: contrast, coil profile, noise and the unit of the stored integers.

    Args:
        modality: ``"t1"``, ``"t1ce"``, ``"t2"`` or ``"flair"``.
        conspicuity: 0 hides the tumor, 1 shows it at its typical contrast.
        rng: source of all variation.
    """

    modality: str
    conspicuity: float
    rng: np.random.Generator

    def clean(self, tissue: Tissue, lesion: Lesion, other: Distractors, grid: Grid) -> Array:
        """Return the noise-free signal on a (fine) grid, with bias field; normal white matter is about 1."""
        rng = self.rng
        signal = np.asarray(_SIGNAL[self.modality]) * np.exp(rng.normal(0, _SPREAD))
        gm, wm, csf, ed, solid, liquid, et, hyper, vessel = signal.astype(np.float32)
        ncr = solid + np.float32(lesion.liquid) * (liquid - solid)
        normal = gm * tissue.gm + wm * tissue.wm + csf * tissue.csf
        normal *= 1 + 0.03 * smooth_noise(rng, grid, 18.0)[0]
        normal += other.hyperintensity * (hyper - normal) * 0.8
        normal += other.vessel * (vessel - normal)
        texture = fractal_noise(rng, grid, 9.0)
        c = np.float32(self.conspicuity)
        base = np.float32(0.5) * (gm + wm)
        image = normal * (1 - lesion.whole)
        image += lesion.ed * (normal + 0.8 * c * (1 + 0.25 * texture) * (ed - normal))
        image += lesion.ncr * (base + np.float32(0.5 + 0.5 * c) * (1 + 0.22 * texture) * (ncr - base))
        image += lesion.et * (base + np.float32(0.4 + 0.6 * c) * (1 + 0.30 * texture) * (et - base))
        bias = np.exp(np.float32(rng.uniform(0.03, 0.10)) * smooth_noise(rng, grid, 60.0)[0])
        return self._blur(np.asarray(image * bias, np.float32), grid)

    def _blur(self, image: Array, grid: Grid) -> Array:
        """Thick slices, as many clinical 2D sequences have them, usually axial ones."""
        thickness, axis = self.rng.uniform(2.0, 5.0), int(self.rng.choice(3, p=(0.15, 0.1, 0.75)))
        if self.rng.random() < 0.5:
            return image
        sigma = 0.35 * thickness / float(grid.z[1] - grid.z[0])
        return np.asarray(ndimage.gaussian_filter1d(image, sigma, axis=axis), np.float32)

    def acquire(self, clean: Array, brain: NDArray[np.bool_], spacing: float) -> NDArray[np.int16]:
        """Add Rician noise, scale to arbitrary units and remove everything outside the brain."""
        rng = self.rng
        sigma = rng.uniform(0.02, 0.05) * (1.0 / spacing) ** 0.5
        real, imaginary = rng.normal(0, sigma, (2, *clean.shape))
        magnitude = np.hypot(clean + real, imaginary)
        unit = float(np.clip(np.exp(rng.normal(np.log(700.0), 0.8)), 120.0, 9000.0))
        return np.where(brain, np.clip(np.rint(magnitude * unit), 1, 32767), 0).astype(np.int16)
