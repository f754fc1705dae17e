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

"""Simulated annotators: from a true mask to the mask of somebody with known habits, in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtr

from monai_rrr.data.annotator_field import NormalSource, gaussian_field
from monai_rrr.utils.distance import signed_distance

__all__ = ["KINDS", "AnnotatorSettings", "simulate_annotator"]

MARGIN_MM = 12.0
"""Room around the tumor in which an annotator may draw."""
_CONNECTED = np.ones((3, 3, 3), bool)
_GRADIENT_MM = 2.0
NCR, ED, ET = 1, 2, 3


@dataclass(frozen=True)
class AnnotatorSettings:
    r"""Habits of an annotator, in mm, applied in the order miss, confuse, smooth, shift and shake.

    A habit that is 0 is not there, so that one rule serves all annotators: an expert has nothing but a shaking hand.
    With the signed distance :math:`\phi_k` (mm, positive inside) of what is left of region k,

    .. math:: \phi_k + \delta + b\, \sigma((t - |\nabla \text{FLAIR}|) / s) + \eta_k > 0

    Args:
        offset_mm: mean shift :math:`\delta` of every contour; positive draws too large.
        offset_sd_mm: standard deviation of the shift from case to case.
        sigma_mm: standard deviation of the shaking :math:`\eta_k`, one field per region.
        correlation_mm: its correlation length.
        blur_mm: largest shift :math:`b` where FLAIR has no edge: too large where the border is hard to see.
        gradient_center: :math:`t`, in standard deviations of the brain per mm.
        gradient_scale: :math:`s`, likewise.
        smooth_mm: standard deviation of the Gaussian that rounds contours off.
        ncr_to_et_mm: non-enhancing core this near to enhancing tumor is called enhancing.
        et_to_ed_mm: enhancing tumor this near to edema is called edema.
        flip: probability that an enhancing component is called non-enhancing.
        miss: probability that a small component is not drawn: components of WT vanish, cores (TC with enhancement)
            become edema.
        small_mm3: components below this volume are small; smoothing never loses them.

    Raises:
        ValueError: When a value is out of range.

    Example:
        >>> KINDS["over"].offset_mm, KINDS["under"].offset_mm
        (2.0, -1.5)
    """

    offset_mm: float = 0.0
    offset_sd_mm: float = 0.0
    sigma_mm: float = 0.3
    correlation_mm: float = 8.0
    blur_mm: float = 0.0
    gradient_center: float = 0.25
    gradient_scale: float = 0.06
    smooth_mm: float = 0.0
    ncr_to_et_mm: float = 0.0
    et_to_ed_mm: float = 0.0
    flip: float = 0.0
    miss: float = 0.0
    small_mm3: float = 150.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = -MARGIN_MM if name == "offset_mm" else 0.0
            most = 1.0 if name in ("flip", "miss") else MARGIN_MM if name in ("offset_mm", "blur_mm") else np.inf
            if not (np.isfinite(value) and least <= value <= most):
                raise ValueError(f"{name} must be in [{least:g}, {most:g}], got {value}")
        if self.correlation_mm == 0 or self.gradient_scale == 0:
            raise ValueError("correlation_mm and gradient_scale must be positive, got 0")

    def drawn(self, generator: NormalSource) -> AnnotatorSettings:
        """Return the settings of one case: the offset is drawn, and has no deviation left.

        Simulating with them and the same generator gives what simulating with the original ones gives.
        """
        if self.offset_sd_mm == 0:
            return self
        offset = self.offset_mm + self.offset_sd_mm * float(generator.standard_normal())
        return replace(self, offset_mm=float(np.clip(offset, -MARGIN_MM, MARGIN_MM)), offset_sd_mm=0.0)


KINDS: dict[str, AnnotatorSettings] = {
    "expert": AnnotatorSettings(),
    "over": AnnotatorSettings(offset_mm=2.0, offset_sd_mm=0.4),
    "under": AnnotatorSettings(offset_mm=-1.5, offset_sd_mm=0.3),
    "smoother": AnnotatorSettings(smooth_mm=2.0),
    "confuser": AnnotatorSettings(ncr_to_et_mm=2.0, et_to_ed_mm=1.5),
    "misser": AnnotatorSettings(miss=0.9),
}
"""The six annotators."""


def simulate_annotator(
    label: NDArray[Any],
    spacing: Sequence[float],
    settings: AnnotatorSettings,
    generator: NormalSource,
    flair: NDArray[Any] | None = None,
) -> NDArray[np.uint8]:
    """Draw a tumor again with the habits of an annotator. Regions stay nested; a case without tumor stays without.

    Nothing is dilated as an integer map, where the larger number would win, and nothing works slice by slice. Distances
    are in mm: a case on a grid of 1 mm and on one of 2 mm gets the same contours, as far as the grids can hold them.

    Args:
        label: true classes: 0 background, 1 non-enhancing core (TC minus ET), 2 edema (WT minus TC), 3 enhancing.
        spacing: voxel size in mm.
        settings: habits.
        generator: source of everything that is drawn; equal states give equal masks.
        flair: image on the same grid, 0 outside of the brain; needed for ``blur_mm`` only.

    Shape:
        - label, flair: ``XYZ``; output: ``XYZ`` uint8, classes as those of ``label``

    Raises:
        ValueError: When the label holds other classes, shapes differ, or an image is needed and missing.

    Example:
        >>> label = np.zeros((24, 24, 24), np.uint8)
        >>> label[8:16, 8:16, 8:16] = 2
        >>> over = simulate_annotator(label, (1, 1, 1), KINDS["over"], np.random.RandomState(0))
        >>> bool((over == 2).sum() > 1.8 * (label == 2).sum())
        True
    """
    _check(label, settings, flair)
    habit = settings.drawn(generator)
    box = _box_around(label > 0, spacing)
    out = np.zeros(label.shape, np.uint8)
    if box is None:
        return out
    classes, start = label[box].astype(np.uint8), [cut.start for cut in box]

    def shake() -> NDArray[np.float32]:
        field = gaussian_field(generator, classes.shape, spacing, habit.correlation_mm, start)
        return np.asarray(np.float32(habit.sigma_mm) * field)

    jitter = [shake() for _ in range(5 if habit.ncr_to_et_mm or habit.et_to_ed_mm else 3)]
    classes = _missed(classes, float(np.prod(spacing)), habit, generator)
    classes = _confused(classes, spacing, habit, jitter[3:], generator)
    shift = habit.offset_mm + (_blur_shift(flair, box, spacing, habit) if flair is not None and habit.blur_mm else 0.0)
    drawn = []
    for mask, eta in zip((classes > 0, (classes == NCR) | (classes == ET), classes == ET), jitter[:3], strict=True):
        drawn.append(signed_distance(_smoothed(mask, spacing, habit), spacing) + shift + eta > 0)
    whole, core, enhancing = drawn[0], drawn[0] & drawn[1], drawn[0] & drawn[1] & drawn[2]
    out[box] = np.where(enhancing, ET, np.where(core, NCR, np.where(whole, ED, 0)))
    return out


def _check(label: NDArray[Any], settings: AnnotatorSettings, flair: NDArray[Any] | None) -> None:
    if label.ndim != 3 or not np.isin(np.unique(label), (0, NCR, ED, ET)).all():
        raise ValueError(f"label expected XYZ of the classes 0 to 3, got {label.shape} of {np.unique(label).tolist()}")
    if settings.blur_mm and flair is None:
        raise ValueError("expected a FLAIR image, since the habit blur_mm depends on its edges, got none")
    if flair is not None and flair.shape != label.shape:
        raise ValueError(f"flair {flair.shape} does not match label {label.shape}")


def _box_around(mask: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[slice, slice, slice] | None:
    if not mask.any():
        return None
    cuts = []
    for cut, size, count in zip(ndimage.find_objects(mask.astype(np.uint8))[0], spacing, mask.shape, strict=True):
        room = int(np.ceil(MARGIN_MM / size)) + 1
        cuts.append(slice(max(cut.start - room, 0), min(cut.stop + room, count)))
    return cuts[0], cuts[1], cuts[2]


def _small(mask: NDArray[np.bool_], voxel_mm3: float, habit: AnnotatorSettings) -> list[NDArray[np.bool_]]:
    """Components (26 neighbors) below the volume that counts as small."""
    components, count = ndimage.label(mask, _CONNECTED)
    sizes = np.bincount(components.ravel(), minlength=count + 1) * voxel_mm3
    return [components == index for index in range(1, count + 1) if sizes[index] < habit.small_mm3]


def _chance(probability: float, generator: NormalSource) -> bool:
    return bool(ndtr(float(generator.standard_normal())) < probability)


def _missed(
    classes: NDArray[np.uint8], voxel_mm3: float, habit: AnnotatorSettings, generator: NormalSource
) -> NDArray[np.uint8]:
    if habit.miss == 0:
        return classes
    left: NDArray[np.uint8] = classes.copy()
    for component in _small(classes > 0, voxel_mm3, habit):
        if _chance(habit.miss, generator):
            left[component] = 0
    for component in _small((left == NCR) | (left == ET), voxel_mm3, habit):
        if (left[component] == ET).any() and _chance(habit.miss, generator):
            left[component] = ED
    return left


def _confused(
    classes: NDArray[np.uint8],
    spacing: Sequence[float],
    habit: AnnotatorSettings,
    jitter: Sequence[NDArray[np.float32]],
    generator: NormalSource,
) -> NDArray[np.uint8]:
    """Take one class for another near their border; the limits shake too, or a grid would round them all one way."""
    mixed: NDArray[np.uint8] = classes.copy()
    if habit.ncr_to_et_mm:
        near = -signed_distance(classes == ET, spacing) <= habit.ncr_to_et_mm + jitter[0]
        mixed[(classes == NCR) & near] = ET
    if habit.et_to_ed_mm:
        near = -signed_distance(classes == ED, spacing) <= habit.et_to_ed_mm + jitter[1]
        mixed[(classes == ET) & near] = ED
    if habit.flip:
        components, count = ndimage.label(mixed == ET, _CONNECTED)
        for index in range(1, count + 1):
            if _chance(habit.flip, generator):
                mixed[components == index] = NCR
    return mixed


def _smoothed(mask: NDArray[np.bool_], spacing: Sequence[float], habit: AnnotatorSettings) -> NDArray[np.bool_]:
    if habit.smooth_mm == 0:
        return mask
    sigma = [habit.smooth_mm / size for size in spacing]
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="nearest") > 0.5
    for component in _small(mask, float(np.prod(spacing)), habit):
        smooth |= component
    return np.asarray(smooth)


def _blur_shift(
    flair: NDArray[Any], box: tuple[slice, slice, slice], spacing: Sequence[float], habit: AnnotatorSettings
) -> NDArray[np.float32]:
    """Shift in mm that grows where FLAIR has no edge."""
    brain = flair[flair != 0]
    scale = float(brain.std()) if brain.size else 0.0
    image = flair[box].astype(np.float32) / np.float32(scale if scale > 0 else 1.0)
    sigma = [_GRADIENT_MM / size for size in spacing]
    slopes = []
    for axis, size in enumerate(spacing):
        order = [int(axis == other) for other in range(3)]
        slopes.append(ndimage.gaussian_filter(image, sigma, order=order, mode="nearest") / np.float32(size))
    gradient = np.sqrt(sum(slope**2 for slope in slopes))
    edge = np.clip((gradient - habit.gradient_center) / habit.gradient_scale, -50, 50)
    return np.asarray(habit.blur_mm / (1 + np.exp(edge)), np.float32)
