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

"""From a heatmap to a mask: the rule that applies a threshold, and the threshold that needs no labels at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.filters import threshold_multiotsu

__all__ = ["OperatingPoint", "apply_threshold", "label_free_threshold"]

FLAT = 1e-3
"""A heatmap whose values span less than this shows no evidence: Otsu would only split its noise."""


@dataclass(frozen=True)
class OperatingPoint:
    """What turns a heatmap of one region into a mask.

    Args:
        threshold: a voxel is foreground when its heatmap is **greater** than this.
        min_area_mm2: slices with less foreground than this are cleared.
        score: what the choice was made by: F1 or the expected mean Dice, in [0, 1]; for the criterion ``"extent"`` an
            error in mm; mean Dice for an oracle.
    """

    threshold: float
    min_area_mm2: float
    score: float


def apply_threshold(
    heatmap: ArrayLike,
    threshold: float,
    min_area_mm2: float = 0.0,
    spacing: Sequence[float] | None = None,
    brain: ArrayLike | None = None,
    slice_gate: ArrayLike | None = None,
) -> NDArray[np.bool_]:
    """Mask of one region from its heatmap.

    Foreground are the voxels in the brain whose heatmap is greater than the threshold. Then axial slices are cleared
    whose whole foreground (not each connected part of it) is smaller than ``min_area_mm2``, which is exactly what
    :class:`~monai_rrr.metrics.calibration.TagCalibration` counts as an absent slice, and those that the gate closes.

    Args:
        heatmap: in [0, 1], larger is more evidence.
        threshold: compared in float32, as is the heatmap.
        min_area_mm2: smallest area of a slice's foreground in mm².
        spacing: voxel size in mm; needed with a minimum area.
        brain: where foreground is allowed; ``None``: everywhere.
        slice_gate: true for slices that may hold foreground, such as those predicted to hold the region.

    Shape:
        - heatmap, brain: ``XYZ``, axial slices along the last axis; slice_gate: ``Z``.

    Raises:
        ValueError: When shapes do not match, the heatmap or a number is not finite, or the spacing is missing.

    Example:
        >>> heatmap = np.zeros((4, 4, 2))
        >>> heatmap[:2, :2, 0] = heatmap[0, 0, 1] = 0.9
        >>> apply_threshold(heatmap, 0.5, min_area_mm2=30.0, spacing=(3.0, 3.0, 3.0)).sum(axis=(0, 1))
        array([4, 0])
    """
    values = as_heatmap(heatmap)
    if not np.isfinite([threshold, min_area_mm2]).all():
        raise ValueError(f"threshold and least area expected finite numbers, got {threshold} and {min_area_mm2}")
    mask: NDArray[np.bool_] = values > np.float32(threshold)
    if brain is not None:
        mask &= as_voxels(brain, values.shape, "brain")
    if min_area_mm2 > 0:
        if spacing is None:
            raise ValueError(f"a minimum area of {min_area_mm2} mm² expected a spacing in mm, got None")
        area = mask.sum(axis=(0, 1)) * pixel_area(spacing)
        mask &= area >= min_area_mm2
    if slice_gate is not None:
        gate = np.asarray(slice_gate).astype(bool)
        if gate.shape != values.shape[2:]:
            raise ValueError(f"slice gate {gate.shape} does not match the slices of heatmap {values.shape}")
        mask &= gate
    return mask


def label_free_threshold(heatmap: ArrayLike, brain: ArrayLike, classes: int = 2) -> float:
    """Otsu's threshold over the brain voxels of one heatmap: no tag, no mask, no other case.

    Needs the heatmap alone, so it finds a foreground in every case, tumor-free ones too, unless the heatmap is flat:
    when its values in the brain span less than 0.001, the threshold is their maximum, so that
    :func:`apply_threshold`, which keeps what is *greater*, gives an empty mask.

    Args:
        heatmap: in [0, 1], larger is more evidence.
        brain: the voxels to look at, at least one.
        classes: number of Otsu's classes, of which the brightest is foreground. 2 is Otsu as published; 3 leaves a
            class for the blurred margin between region and background, which suits heatmaps that spread far.

    Shape:
        - heatmap, brain: ``XYZ``

    Raises:
        ValueError: When shapes do not match, the heatmap is not finite, the brain is empty, or ``classes < 2``.

    Reference:
        Otsu, A threshold selection method from gray-level histograms, IEEE Trans. SMC 1979.

    Example:
        >>> heatmap = np.full((4, 4, 4), 0.1)
        >>> heatmap[:2] = 0.8
        >>> 0.1 < label_free_threshold(heatmap, np.ones((4, 4, 4))) < 0.8
        True
    """
    if classes < 2:
        raise ValueError(f"classes expected at least 2, got {classes}")
    values = as_heatmap(heatmap)
    inside = values[as_voxels(brain, values.shape, "brain")]
    if inside.size == 0:
        raise ValueError("brain expected at least one voxel, got none")
    if float(np.ptp(inside)) < FLAT:
        return float(inside.max())
    counts, edges = np.histogram(inside, bins=256)
    # Otsu puts whole bins into a class, so the cut is the upper edge of a bin, not its center.
    found = threshold_multiotsu(  # type: ignore[no-untyped-call]
        classes=min(classes, np.count_nonzero(counts)), hist=(counts, edges[1:])
    )
    return float(found[-1])


def as_heatmap(heatmap: ArrayLike) -> NDArray[np.float32]:
    """Return the heatmap as finite float32 ``XYZ``: every threshold is chosen and applied in this precision."""
    values = np.asarray(heatmap, dtype=np.float32)
    if values.ndim != 3:
        raise ValueError(f"heatmap expected shape (X, Y, Z), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"heatmap expected finite values, got {int((~np.isfinite(values)).sum())} NaN or Inf voxels")
    return values


def as_voxels(mask: ArrayLike, shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    """Return a voxel mask as bool, checked against the shape of an image or heatmap."""
    voxels = np.asarray(mask).astype(bool)
    if voxels.shape != shape:
        raise ValueError(f"{name} {voxels.shape} does not match image {shape}")
    return voxels


def pixel_area(spacing: Sequence[float]) -> float:
    """Area of one voxel in the axial plane, in mm²."""
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing expected 3 positive values in mm, got {tuple(spacing)}")
    return float(spacing[0]) * float(spacing[1])
