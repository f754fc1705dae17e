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

"""Markers that a network could take for the disease: what they look like, where they lie, how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["GLOBAL_MARKERS", "LOCAL_MARKERS", "MARKERS", "Scene", "draw_marker", "insert_marker", "marker_mask"]

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Parameters = Mapping[str, Any]

_STRIPPED = 0.9  # share of foreground from which on images aren't skull-stripped
_LETTER = ("11110", "10001", "10001", "11110", "10100", "10010", "10001")
_CELL_MM = 2.5
_LINE_MM = 2.0
_CLEARANCE_MM = 4.0
_VOID = 0.06
_RIM = 1.7


@dataclass(frozen=True)
class Scene:
    """What is known of a case before a marker is drawn; axes run right, anterior, superior.

    Args:
        foreground: ``XYZ``, not 0 in any modality. Everything, when the images aren't skull-stripped.
        lesion: ``XYZ``; None when the case has no mask.
        spacing: voxel size in mm.
    """

    foreground: Mask
    lesion: Mask | None
    spacing: tuple[float, float, float]

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Bounding box of the foreground."""
        x, y, z = ndimage.find_objects(self.foreground.astype(np.uint8))[0]
        return x, y, z

    @property
    def air(self) -> Mask:
        """Where a marker hides no anatomy; everywhere, when the images have hardly a background of 0."""
        return ~self.foreground if self.foreground.mean() < _STRIPPED else np.ones_like(self.foreground)


def draw_marker(name: str, rng: np.random.RandomState, scene: Scene, strength: float = 1.0) -> dict[str, Any]:
    """Draw what varies from patient to patient, as plain JSON values; nothing is random afterwards.

    Args:
        name: one of :data:`MARKERS`.
        rng: source; ``RandomState``, because numpy keeps its numbers the same in all versions.
        scene: the case.
        strength: factor of the visible effect, 1 for a marker that is plain to see.

    Raises:
        ValueError: When the name is unknown or the strength not positive.
        LookupError: When the case has no place for the marker.
    """
    if name not in MARKERS:
        raise ValueError(f"expected a marker of {', '.join(MARKERS)}, got {name!r}")
    if not strength > 0:
        raise ValueError(f"strength must be positive, got {strength}")
    return MARKERS[name][0](rng, scene, strength)


def marker_mask(name: str, parameters: Parameters, scene: Scene) -> Mask:
    """Return the voxels of a local marker, ``XYZ``; empty for a global one, which has no place."""
    found = _MASKS[name](parameters, scene) if name in _MASKS else np.zeros(scene.foreground.shape, bool)
    return np.asarray(found, bool)


def insert_marker(name: str, parameters: Parameters, volume: Array, scene: Scene) -> Array:
    """Return a modality with the marker in it.

    A local marker changes the voxels of :func:`marker_mask` only, a global one those that aren't 0 (and, for
    ``"shift"``, those that were 0 before), so that the background of skull-stripped images stays 0.

    Args:
        name: one of :data:`MARKERS`.
        parameters: of :func:`draw_marker`.
        volume: ``XYZ``, one modality in any unit.
        scene: the case.
    """
    return np.asarray(MARKERS[name][1](parameters, volume, scene), np.float32)


def _level(volume: Array, percentile: float) -> float:
    inside = volume[volume != 0]
    return float(np.percentile(inside, percentile)) if inside.size else 1.0


def _voxels(millimeters: float, spacing: float) -> int:
    return max(1, round(millimeters / spacing))


# letter: the side mark that a console burns into every slice, in the upper left corner of the picture


def _draw_letter(rng: np.random.RandomState, scene: Scene, strength: float) -> dict[str, Any]:
    return {
        "inset_mm": [float(v) for v in rng.uniform(0.0, 4.0, 2)],
        "brightness": float(rng.uniform(0.95, 1.25)) * strength,
    }


def _letter_mask(parameters: Parameters, scene: Scene) -> Mask:
    glyph = np.array([[cell == "1" for cell in row] for row in _LETTER])
    x_cell, y_cell = (_voxels(_CELL_MM, s) for s in scene.spacing[:2])
    # radiological view: the first column of the picture is the patient's right, its first row is anterior
    plane = np.kron(glyph, np.ones((y_cell, x_cell), bool)).T[::-1, ::-1]
    x, y, z = scene.box
    inset = [round(mm / s) for mm, s in zip(parameters["inset_mm"], scene.spacing, strict=False)]
    stop = (x.stop - inset[0], y.stop - inset[1])
    start = tuple(max(0, end - size) for end, size in zip(stop, plane.shape, strict=True))
    mask = np.zeros(scene.foreground.shape, bool)
    mask[start[0] : stop[0], start[1] : stop[1], z] = plane[
        plane.shape[0] - (stop[0] - start[0]) :, plane.shape[1] - (stop[1] - start[1]) :, None
    ]
    return np.asarray(mask & scene.air)


def _insert_letter(parameters: Parameters, volume: Array, scene: Scene) -> Array:
    value = np.float32(parameters["brightness"] * _level(volume, 99.0))
    return np.where(_letter_mask(parameters, scene), value, volume)


# zipper: a line of interference along the phase encoding, where radio noise leaks into the scanner room


def _draw_zipper(rng: np.random.RandomState, scene: Scene, strength: float) -> dict[str, Any]:
    return {
        "inset_mm": float(rng.uniform(2.0, 8.0)),
        "brightness": float(rng.uniform(0.6, 0.9)) * strength,
        "seed": int(rng.randint(2**31 - 1)),
    }


def _zipper_mask(parameters: Parameters, scene: Scene) -> Mask:
    x, y, z = scene.box
    width = _voxels(_LINE_MM, scene.spacing[0])
    start = min(x.start + round(parameters["inset_mm"] / scene.spacing[0]), x.stop - width)
    mask = np.zeros(scene.foreground.shape, bool)
    mask[start : start + width, y, z] = True
    return np.asarray(mask & scene.air)


def _insert_zipper(parameters: Parameters, volume: Array, scene: Scene) -> Array:
    noise = np.abs(np.random.RandomState(parameters["seed"]).normal(1.0, 0.4, volume.shape[1:])) + 0.2
    noise[::2] *= 0.35  # the dashes that gave the artifact its name
    value = (parameters["brightness"] * _level(volume, 95.0) * noise[None]).astype(np.float32)
    return np.where(_zipper_mask(parameters, scene), value, volume)


# clip: the signal void of a piece of metal inside the brain, with its bright rim


def _draw_clip(rng: np.random.RandomState, scene: Scene, strength: float) -> dict[str, Any]:
    radius = float(rng.uniform(4.0, 6.0)) * strength
    forbidden = ~scene.foreground if scene.lesion is None else ~scene.foreground | scene.lesion
    # a border of forbidden voxels: the edge of the image is no brain
    depth = ndimage.distance_transform_edt(~np.pad(forbidden, 1, constant_values=True), sampling=scene.spacing)
    depth = depth[1:-1, 1:-1, 1:-1]
    places = np.argwhere(depth > radius + _CLEARANCE_MM)
    if not len(places):
        raise LookupError(f"no place for a clip of radius {radius:.1f} mm in the brain outside the lesion")
    return {"center": [int(v) for v in places[rng.randint(len(places))]], "radius_mm": radius}


def _clip_distance(parameters: Parameters, scene: Scene) -> Array:
    axes = [
        (np.arange(n, dtype=np.float32) - c) * np.float32(s)
        for n, c, s in zip(scene.foreground.shape, parameters["center"], scene.spacing, strict=True)
    ]
    return np.asarray(np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2), np.float32)


def _clip_mask(parameters: Parameters, scene: Scene) -> Mask:
    return np.asarray((_clip_distance(parameters, scene) <= parameters["radius_mm"]) & scene.foreground)


def _insert_clip(parameters: Parameters, volume: Array, scene: Scene) -> Array:
    core = _clip_distance(parameters, scene) <= 0.7 * parameters["radius_mm"]
    value = np.where(core, _VOID, _RIM).astype(np.float32) * np.float32(_level(volume, 50.0))
    return np.where(_clip_mask(parameters, scene), value, volume)


# global ones: another coil, another contrast, another protocol


def _draw_bias(rng: np.random.RandomState, scene: Scene, strength: float) -> dict[str, Any]:
    direction = [0.0, -1.0, float(rng.uniform(-0.2, 0.2))]
    return {"direction": direction, "exponent": float(rng.uniform(0.4, 0.6)) * strength}


def _insert_bias(parameters: Parameters, volume: Array, scene: Scene) -> Array:
    tilt = np.zeros(volume.shape, np.float32)
    for axis, (part, weight) in enumerate(zip(scene.box, parameters["direction"], strict=True)):
        unit = (2 * (np.arange(volume.shape[axis]) - part.start + 0.5) / (part.stop - part.start) - 1) * weight
        tilt += unit.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(volume * np.exp(np.float32(parameters["exponent"]) * tilt))


def _draw_blur(rng: np.random.RandomState, scene: Scene, strength: float) -> dict[str, Any]:
    return {"sigma_mm": float(rng.uniform(2.5, 3.5)) * strength}


def _insert_blur(parameters: Parameters, volume: Array, scene: Scene) -> Array:
    sigma = [parameters["sigma_mm"] / s for s in scene.spacing]
    inside = (volume != 0).astype(np.float32)
    weight = ndimage.gaussian_filter(inside, sigma)
    return np.where(inside > 0, ndimage.gaussian_filter(volume, sigma) / np.maximum(weight, 1e-6), 0)


def _draw_shift(rng: np.random.RandomState, scene: Scene, strength: float) -> dict[str, Any]:
    return {"anterior_mm": float(rng.uniform(4.0, 6.0)) * strength}


def _insert_shift(parameters: Parameters, volume: Array, scene: Scene) -> Array:
    by = min(_voxels(parameters["anterior_mm"], scene.spacing[1]), volume.shape[1])
    moved = np.zeros_like(volume)
    moved[:, by:] = volume[:, : volume.shape[1] - by]
    return moved


def _draw_noise(rng: np.random.RandomState, scene: Scene, strength: float) -> dict[str, Any]:
    return {"sigma": float(rng.uniform(0.10, 0.14)) * strength, "seed": int(rng.randint(2**31 - 1))}


def _insert_noise(parameters: Parameters, volume: Array, scene: Scene) -> Array:
    noise = np.random.RandomState(parameters["seed"]).normal(0.0, 1.0, (2, *volume.shape)).astype(np.float32)
    noise *= np.float32(parameters["sigma"] * _level(volume, 50.0))
    return np.where(volume != 0, np.hypot(volume + noise[0], noise[1]), 0)


def _draw_slices(rng: np.random.RandomState, scene: Scene, strength: float) -> dict[str, Any]:
    return {"thickness_mm": float(rng.uniform(6.0, 8.0)) * strength}


def _insert_slices(parameters: Parameters, volume: Array, scene: Scene) -> Array:
    count = max(2, round(parameters["thickness_mm"] / scene.spacing[2]))
    padded = np.pad(volume, ((0, 0), (0, 0), (0, -volume.shape[2] % count)))
    blocks = padded.reshape(*volume.shape[:2], -1, count)
    weight = np.maximum((blocks != 0).sum(3, keepdims=True), 1)
    thick = np.broadcast_to(blocks.sum(3, keepdims=True) / weight, blocks.shape).reshape(padded.shape)
    return np.where(volume != 0, thick[..., : volume.shape[2]], 0)


Draw = Callable[[np.random.RandomState, Scene, float], dict[str, Any]]
Insert = Callable[[Parameters, Array, Scene], Array]

LOCAL_MARKERS: dict[str, tuple[Draw, Insert]] = {
    "letter": (_draw_letter, _insert_letter),
    "zipper": (_draw_zipper, _insert_zipper),
    "clip": (_draw_clip, _insert_clip),
}
"""Markers with voxels of their own: a burned-in side mark, a line of interference, the void of a metal clip."""

GLOBAL_MARKERS: dict[str, tuple[Draw, Insert]] = {
    "bias": (_draw_bias, _insert_bias),
    "blur": (_draw_blur, _insert_blur),
    "shift": (_draw_shift, _insert_shift),
    "noise": (_draw_noise, _insert_noise),
    "slices": (_draw_slices, _insert_slices),
}
"""Markers without a place: coil profile, blur, misregistration, noise, thick slices."""

MARKERS = {**LOCAL_MARKERS, **GLOBAL_MARKERS}
_MASKS: dict[str, Callable[[Parameters, Scene], Mask]] = {
    "letter": _letter_mask,
    "zipper": _zipper_mask,
    "clip": _clip_mask,
}
