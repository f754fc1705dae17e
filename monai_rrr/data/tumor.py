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


"""Synthetic gliomas: nested irregular regions that grow in the anatomy of a subject."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_rrr.data.anatomy import Push, Tissue
from monai_rrr.data.field import Grid, fractal_noise, smooth_noise

__all__ = ["Lesion", "TumorPlan", "grow"]

Array = NDArray[np.float32]

KINDS = ("ring", "low_grade", "edematous", "patchy")
_SHARE = (0.45, 0.2, 0.2, 0.15)
_CORE = {"ring": (0.25, 0.6), "low_grade": (0.4, 0.85), "edematous": (0.03, 0.12), "patchy": (0.4, 0.8)}


@dataclass(frozen=True)
class TumorPlan:
    """What grows where: the drawn parameters of one tumor.

    Args:
        kind: ``"ring"`` (necrosis, enhancing rim, edema), ``"low_grade"`` (no enhancement), ``"edematous"`` (small
            enhancing core in a large edema) or ``"patchy"`` (scattered enhancement).
        center: center in mm of the frame.
        whole_ml: volume of the whole tumor in milliliters.
        core_ml: volume of the tumor core in milliliters.
        rim_mm: mean thickness of the enhancing rim in mm; 0 without enhancement.
        gap: how much of the rim does not enhance, as a threshold on a standard normal field.
        infiltration: how strongly edema prefers white matter.
        margin_mm: width of the edema's soft edge in mm.
        liquid: how liquid the necrotic or non-enhancing core is: 0 is solid tumor, 1 is fluid.
        mass_effect: strength of the displacement, see :class:`~monai_rrr.data.anatomy.Push`.
        satellites: number of satellite lesions.
    """

    kind: str
    center: tuple[float, float, float]
    whole_ml: float
    core_ml: float
    rim_mm: float
    gap: float
    infiltration: float
    margin_mm: float
    liquid: float
    mass_effect: float
    satellites: int

    @classmethod
    def draw(cls, rng: np.random.Generator, tissue: Tissue, grid: Grid) -> TumorPlan:
        """Draw a plan for a subject whose ``tissue`` was sampled on a coarse ``grid``."""
        kind = str(rng.choice(KINDS, p=_SHARE))
        whole = float(np.clip(np.exp(rng.normal(np.log(55.0), 0.75)), 5.0, 150.0))
        core = whole * rng.uniform(*_CORE[kind])
        chance = (tissue.wm + 0.6 * tissue.gm) * (tissue.mni[2] > -28) * (np.abs(tissue.mni[0]) > 12)
        chance = (chance * (tissue.csf < 0.3)).astype(np.float64).ravel()
        site = np.unravel_index(int(rng.choice(chance.size, p=chance / chance.sum())), grid.shape)
        center = (float(grid.x[site[0]]), float(grid.y[site[1]]), float(grid.z[site[2]]))
        return cls(
            kind=kind,
            center=center,
            whole_ml=whole,
            core_ml=float(core),
            rim_mm=0.0 if kind == "low_grade" else float(rng.uniform(2.0, 6.0)),
            gap=float(rng.uniform(-2.5, -0.6)),
            infiltration=float(rng.uniform(0.4, 1.1)),
            margin_mm=float(rng.uniform(1.0, 4.0)),
            liquid=float(rng.uniform(0.0, 0.5) if kind == "low_grade" else rng.uniform(0.3, 1.0)),
            mass_effect=float(rng.uniform(0.0, 0.5)),
            satellites=int(rng.choice(3, p=(0.7, 0.2, 0.1))),
        )

    @property
    def push(self) -> Push:
        """The mass effect of the core and part of the edema."""
        return Push(self.center, 1.6 * _radius(self.core_ml + 0.3 * self.whole_ml), self.mass_effect)


@dataclass(frozen=True)
class Lesion:
    """Fractions of the tumor parts, ``X Y Z`` each; their sum is at most 1.

    Args:
        ncr: necrotic and non-enhancing core.
        ed: edema.
        et: enhancing tumor.
        liquid: how liquid the core is, in [0, 1].
    """

    ncr: Array
    ed: Array
    et: Array
    liquid: float = 0.0

    @property
    def whole(self) -> Array:
        """Fraction of the whole tumor."""
        return np.asarray(self.ncr + self.ed + self.et)


def _radius(milliliters: float) -> float:
    return float((1000 * milliliters * 3 / (4 * np.pi)) ** (1 / 3))


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)


def _distance(rng: np.random.Generator, grid: Grid, center: tuple[float, float, float]) -> Array:
    """Distance from a center in mm, in a random ellipsoidal metric of unit volume."""
    axes = np.exp(rng.normal(0, 0.16, 3))
    frame, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    metric = (frame * (axes / np.prod(axes) ** (1 / 3))).T.astype(np.float32)
    offset = grid.points() - np.asarray(center, np.float32)[:, None, None, None]
    return np.asarray(np.sqrt((np.tensordot(metric, offset, axes=1) ** 2).sum(0)))


def _level(field: Array, milliliters: float, grid: Grid) -> float:
    """Value below which ``field`` has the given volume."""
    count = min(max(int(milliliters / grid.voxel_ml), 1), field.size - 1)
    return float(np.partition(field, count, axis=None)[count])


def grow(plan: TumorPlan, tissue: Tissue, grid: Grid, rng: np.random.Generator) -> Lesion:
    """Grow the tumor of a plan in the tissue of a subject.

    Args:
        plan: what to grow.
        tissue: anatomy on ``grid``, the plan's mass effect included.
        grid: voxel centers.
        rng: source of the shape.
    """
    core_radius, whole_radius = _radius(plan.core_ml), _radius(plan.whole_ml)
    barrier = np.where(tissue.brain, np.float32(0), np.float32(1e3)) + 40 * tissue.csf**2
    distance = _distance(rng, grid, plan.center)
    rough = fractal_noise(rng, grid, max(0.7 * core_radius, 4.0))
    core = distance + 0.3 * core_radius * rough + barrier
    for _ in range(plan.satellites):
        core = np.minimum(core, _satellite(plan, grid, rng, core_radius) + barrier)
    core_depth = _level(core, plan.core_ml, grid) - core
    in_core = _sigmoid(core_depth / 0.7)
    fingers = fractal_noise(rng, grid, max(0.5 * whole_radius, 6.0))
    other_side = np.clip(-np.sign(plan.center[0]) * tissue.mni[0] - 2, 0, 10) * (1 - tissue.wm)
    edema = distance + whole_radius * (0.22 * fingers + plan.infiltration * (1 - tissue.wm)) + barrier + 2 * other_side
    edema = np.minimum(edema, core + 0.15 * whole_radius - core_radius)
    depth = _level(np.where(core_depth > 0, np.float32(-1e3), edema), plan.whole_ml, grid) - edema
    reach = _connected(depth > -2 * plan.margin_mm, core_depth > 0)
    in_whole = np.maximum(_sigmoid(depth / plan.margin_mm) * (tissue.csf < 0.6) * tissue.brain * reach, in_core)
    in_et = in_core * _enhancing(plan, grid, rng, core_depth)
    return Lesion(ncr=in_core - in_et, ed=in_whole - in_core, et=in_et, liquid=plan.liquid)


def _connected(region: NDArray[np.bool_], seeds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the components of ``region`` that touch ``seeds``."""
    components, count = ndimage.label(region)
    keep = np.zeros(count + 1, bool)
    keep[np.unique(components[seeds])] = True
    keep[0] = False
    return np.asarray(keep[components])


def _satellite(plan: TumorPlan, grid: Grid, rng: np.random.Generator, core_radius: float) -> Array:
    """Distance field of a satellite, shifted so that its level set joins that of the core."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    reach = core_radius + rng.uniform(5.0, 18.0)
    x, y, z = (float(c + reach * d) for c, d in zip(plan.center, direction, strict=True))
    size = float(rng.uniform(3.0, 7.0))
    return np.asarray(_distance(rng, grid, (x, y, z)) + core_radius - size + smooth_noise(rng, grid, 5.0)[0])


def _enhancing(plan: TumorPlan, grid: Grid, rng: np.random.Generator, depth: Array) -> Array:
    """Share of the core that enhances, from the depth below its surface in mm."""
    if plan.rim_mm == 0:
        return np.zeros_like(depth)
    coarse, fine = smooth_noise(rng, grid, 14.0)[0], smooth_noise(rng, grid, 5.0)[0]
    if plan.kind == "patchy":
        return _sigmoid((coarse + 0.8 * fine - plan.gap - 1.3) / 0.12)
    thickness = plan.rim_mm * np.exp(0.45 * coarse + 0.3 * fine)
    broken = _sigmoid((0.8 * coarse + 0.6 * fine - plan.gap) / 0.15)
    return np.asarray(_sigmoid((thickness - depth) / 0.6) * broken, np.float32)
