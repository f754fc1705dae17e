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

"""Thresholds fitted over several cases: to slice tags, which training has, or to masks, as an upper bound only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_rrr.metrics.expected_dice import expected_dice
from monai_rrr.metrics.threshold import OperatingPoint, as_heatmap, as_voxels, pixel_area

__all__ = ["MIN_AREAS_MM2", "THRESHOLDS", "TagCalibration", "calibrate_on_tags", "oracle_threshold"]

THRESHOLDS: NDArray[np.float32] = (1 / (1 + np.exp(-np.linspace(-6, 6, 241)))).astype(np.float32)
"""Candidates from 0.0025 to 0.9975, evenly spaced in log-odds: fine near 0 and 1, where sigmoid heatmaps pile up."""

MIN_AREAS_MM2: tuple[float, ...] = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0)
"""Candidates for the least area of a slice's foreground, in mm²."""

Criterion = Literal["f1", "extent", "f1_dice"]


class TagCalibration:
    """Threshold and minimum area of one region that agree best with the slice tags of the training cases.

    A slice counts as predicted when its foreground, the brain voxels above the threshold, is not empty and covers at
    least the minimum area. Only counts per slice and threshold are kept, so cases can be added one by one.

    ``"f1"``: F1 of slice presence over all slices of all cases, each slice weighing its thickness in mm; 1 when neither
    tags nor prediction mark any slice. ``"extent"``: mean over cases of the distance in mm between predicted and tagged
    first slice plus that between the last slices; a case where only one of the two is empty counts twice its height.
    ``"f1_dice"``: the mean Dice over cases that the tags let one expect. A case with tags counts with the product of
    F1 and :func:`~monai_rrr.metrics.expected_dice.expected_dice`, a case without any with 1 if its mask is empty, else
    0. F1 and extent look at the hottest voxels of a slice alone, which puts their thresholds too high for the rest of
    the region; the expected Dice looks at all voxels. Where tags can't tell it, F1 decides.

    Near the best score many thresholds do equally well. Ties are resolved so: points within the tolerance of the best
    score are equal; of these the smallest minimum area is taken, since it should remove noise and not shape the mask;
    then the middle (in log-odds) of the run of equal thresholds around the best one, which is the choice farthest from
    both ends at which slices start to go wrong.

    Args:
        thresholds: candidates, ascending, in [0, 1].
        min_areas_mm2: candidates, ascending, in mm².

    Example:
        >>> heatmap = np.zeros((4, 4, 4))
        >>> heatmap[1:3, 1:3, 1:3] = 0.7
        >>> calibration = TagCalibration()
        >>> calibration.add(heatmap, [0, 1, 1, 0], np.ones((4, 4, 4)), (3.0, 3.0, 3.0))
        >>> calibration.solve().score
        1.0
    """

    def __init__(self, thresholds: ArrayLike = THRESHOLDS, min_areas_mm2: Sequence[float] = MIN_AREAS_MM2) -> None:
        self.thresholds = _as_grid(thresholds, "thresholds").astype(np.float32)
        self.min_areas_mm2 = tuple(float(a) for a in _as_grid(min_areas_mm2, "minimum areas"))
        self._voxels: list[NDArray[np.int32]] = []
        self._inside: list[NDArray[np.intp]] = []
        self._areas: list[float] = []
        self._tags: list[NDArray[np.bool_]] = []
        self._thickness: list[float] = []

    def add(self, heatmap: ArrayLike, slice_label: ArrayLike, brain: ArrayLike, spacing: Sequence[float]) -> None:
        """Add one training case.

        Args:
            heatmap: ``XYZ`` in [0, 1], larger is more evidence.
            slice_label: ``Z``, 1 for slices that the tags mark.
            brain: ``XYZ``, voxels that count.
            spacing: voxel size in mm.

        Raises:
            ValueError: When shapes do not match or a slice label is neither 0 nor 1.
        """
        values = as_heatmap(heatmap)
        inside = as_voxels(brain, values.shape, "brain")
        tags = np.asarray(slice_label)
        if tags.shape != values.shape[2:]:
            raise ValueError(f"slice label {tags.shape} does not match the slices of heatmap {values.shape}")
        if not np.isin(tags, (0, 1)).all():
            raise ValueError(f"slice label expected 0 or 1, got {sorted(set(tags.tolist()))}")
        self._areas.append(pixel_area(spacing))
        self._voxels.append(_voxels_above(values, inside, self.thresholds))
        self._inside.append(inside.sum(axis=(0, 1)))
        self._tags.append(tags.astype(bool))
        self._thickness.append(float(spacing[2]))

    def solve(self, criterion: Criterion = "f1", tolerance: float | None = None) -> OperatingPoint:
        """Best point over all cases added.

        Args:
            criterion: ``"f1"`` or ``"extent"``, see the class.
            tolerance: how far below the best a score is still equal to it; default 0.01 for F1, 1 mm for the extent.

        Raises:
            ValueError: When no case was added or the criterion is unknown.
        """
        if not self._areas:
            raise ValueError("calibration expected at least one case, got none")
        if criterion == "f1_dice":
            dice = self._expected_dice()
            if dice is not None:
                return self._best_mean_dice(dice, 0.01 if tolerance is None else tolerance)
            criterion = "f1"
        if criterion == "f1":
            scores = np.stack([self._f1(area) for area in self.min_areas_mm2])
            equal = scores >= scores.max() - (0.01 if tolerance is None else tolerance)
        elif criterion == "extent":
            scores = np.stack([self._extent_error(area) for area in self.min_areas_mm2])
            equal = scores <= scores.min() + (1.0 if tolerance is None else tolerance)
        else:
            raise ValueError(f"criterion expected 'f1', 'extent' or 'f1_dice', got {criterion!r}")
        row = int(np.flatnonzero(equal.any(axis=1))[0])
        column = _middle_of_run(scores[row], equal[row], maximize=criterion == "f1")
        return OperatingPoint(float(self.thresholds[column]), self.min_areas_mm2[row], float(scores[row, column]))

    def _expected_dice(self) -> NDArray[np.float64] | None:
        mm3 = [area * thickness for area, thickness in zip(self._areas, self._thickness, strict=True)]
        return expected_dice(self._voxels, self._inside, self._tags, mm3, self._thickness)

    def _best_mean_dice(self, dice: NDArray[np.float64], tolerance: float) -> OperatingPoint:
        tagged = np.mean([tags.any() for tags in self._tags])
        scores = np.stack(
            [tagged * self._f1(area) * dice + (1 - tagged) * self._left_empty(area) for area in self.min_areas_mm2]
        )
        row = int(np.flatnonzero((scores >= scores.max() - tolerance).any(axis=1))[0])
        column = int(scores[row].argmax())
        return OperatingPoint(float(self.thresholds[column]), self.min_areas_mm2[row], float(scores[row, column]))

    def _left_empty(self, min_area: float) -> NDArray[np.float64]:
        """Share of the cases without any tag whose mask is empty; 0 when there is no such case."""
        empty = [~present.any(axis=0) for present, tags, _ in self._cases(min_area) if not tags.any()]
        share: NDArray[np.float64] = np.mean(empty, axis=0) if empty else np.zeros(len(self.thresholds))
        return share

    def _cases(self, min_area: float) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_], float]]:
        for voxels, area, tags, thickness in zip(self._voxels, self._areas, self._tags, self._thickness, strict=True):
            yield _present(voxels * area, min_area), tags, thickness

    def _f1(self, min_area: float) -> NDArray[np.float64]:
        hit, miss, false = (np.zeros(len(self.thresholds)) for _ in range(3))
        for present, tags, thickness in self._cases(min_area):
            hit += thickness * present[tags].sum(axis=0)
            miss += thickness * (~present[tags]).sum(axis=0)
            false += thickness * present[~tags].sum(axis=0)
        marked = 2 * hit + miss + false
        f1: NDArray[np.float64] = np.where(marked > 0, 2 * hit / np.maximum(marked, 1e-12), 1.0)
        return f1

    def _extent_error(self, min_area: float) -> NDArray[np.float64]:
        errors = []
        for present, tags, thickness in self._cases(min_area):
            tagged = tags[:, None]
            ends = sum(
                abs(side(present).argmax(axis=0) - side(tagged).argmax(axis=0)) for side in (np.asarray, np.flipud)
            )
            either, both = present.any(axis=0) | tagged.any(), present.any(axis=0) & tagged.any()
            errors.append(thickness * np.where(both, ends, np.where(either, 2 * len(tags), 0)))
        mean: NDArray[np.float64] = np.mean(errors, axis=0)
        return mean


def calibrate_on_tags(
    heatmaps: Iterable[ArrayLike],
    slice_labels: Iterable[ArrayLike],
    brains: Iterable[ArrayLike],
    spacings: Iterable[Sequence[float]],
    criterion: Criterion = "f1",
) -> OperatingPoint:
    """Operating point of one region from the slice tags of training cases: :class:`TagCalibration` in one call.

    Args:
        heatmaps: per case ``XYZ`` in [0, 1].
        slice_labels: per case ``Z``, 1 for slices that the tags mark.
        brains: per case ``XYZ``.
        spacings: per case, voxel size in mm.
        criterion: ``"f1"``, ``"extent"`` or ``"f1_dice"``.

    Raises:
        ValueError: When the lists differ in length or are empty, or a case does not fit.

    Example:
        >>> heatmap = np.zeros((2, 2, 3))
        >>> heatmap[..., 1] = 0.9
        >>> calibrate_on_tags([heatmap], [[0, 1, 0]], [np.ones((2, 2, 3))], [(3.0, 3.0, 3.0)]).min_area_mm2
        0.0
    """
    calibration = TagCalibration()
    for heatmap, slice_label, brain, spacing in zip(heatmaps, slice_labels, brains, spacings, strict=True):
        calibration.add(heatmap, slice_label, brain, spacing)
    return calibration.solve(criterion)


def oracle_threshold(
    heatmaps: Iterable[ArrayLike],
    truths: Iterable[ArrayLike],
    brains: Iterable[ArrayLike],
    spacings: Iterable[Sequence[float]],
) -> OperatingPoint:
    """Operating point with the best mean Dice against the masks. An upper bound, never a result: it has seen the truth.

    Searches the same candidates as :class:`TagCalibration`, one point for all cases, so on the cases it is given no
    tag-calibrated point of that grid can score higher. Both masks empty: Dice 1; one empty: 0. Ties: the middle of the
    run of equal thresholds at the smallest minimum area.

    Args:
        heatmaps: per case ``XYZ`` in [0, 1].
        truths: per case ``XYZ``, true mask of the region.
        brains: per case ``XYZ``; the prediction is limited to it, the truth is not.
        spacings: per case, voxel size in mm.

    Raises:
        ValueError: When the lists differ in length or are empty, or a case does not fit.

    Example:
        >>> heatmap, truth = np.zeros((2, 2, 2)), np.zeros((2, 2, 2), dtype=bool)
        >>> heatmap[0], truth[0] = 0.6, True
        >>> oracle_threshold([heatmap], [truth], [np.ones((2, 2, 2))], [(3.0, 3.0, 3.0)]).score
        1.0
    """
    dice = []
    for heatmap, truth, brain, spacing in zip(heatmaps, truths, brains, spacings, strict=True):
        values = as_heatmap(heatmap)
        inside, true = as_voxels(brain, values.shape, "brain"), as_voxels(truth, values.shape, "truth")
        marked = _voxels_above(values, inside, THRESHOLDS)
        hit = _voxels_above(values, inside & true, THRESHOLDS)
        kept = np.stack([_present(marked * pixel_area(spacing), area) for area in MIN_AREAS_MM2])
        size = (kept * marked).sum(axis=1) + true.sum()
        dice.append(np.where(size > 0, 2 * (kept * hit).sum(axis=1) / np.maximum(size, 1), 1.0))
    if not dice:
        raise ValueError("oracle expected at least one case, got none")
    scores = np.mean(dice, axis=0)
    row = int(np.argmax(scores.max(axis=1)))
    column = _middle_of_run(scores[row], scores[row] == scores[row].max(), maximize=True)
    return OperatingPoint(float(THRESHOLDS[column]), MIN_AREAS_MM2[row], float(scores[row, column]))


def _voxels_above(
    values: NDArray[np.float32], inside: NDArray[np.bool_], thresholds: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Number of voxels inside with a value greater than each threshold, per slice: ``Z x thresholds``."""
    depth, bins = values.shape[2], len(thresholds) + 1
    below = np.searchsorted(thresholds, values[inside], side="left")
    slices = np.broadcast_to(np.arange(depth), values.shape)[inside]
    counts = np.bincount(slices * bins + below, minlength=depth * bins).reshape(depth, bins)
    return counts[:, ::-1].cumsum(axis=1)[:, -2::-1].astype(np.int32)


def _present(areas: NDArray[np.floating], min_area: float) -> NDArray[np.bool_]:
    return (areas > 0) & (areas >= min_area)


def _middle_of_run(scores: NDArray[np.float64], equal: NDArray[np.bool_], maximize: bool) -> int:
    best = int(np.argmax(scores if maximize else -scores))
    gaps = np.flatnonzero(~equal)
    low = int(gaps[gaps < best].max(initial=-1)) + 1
    high = int(gaps[gaps > best].min(initial=len(scores))) - 1
    return (low + high) // 2


def _as_grid(values: ArrayLike, name: str) -> NDArray[np.float64]:
    grid = np.asarray(values, dtype=np.float64)
    if grid.ndim != 1 or grid.size == 0 or (np.diff(grid) <= 0).any() or not np.isfinite(grid).all():
        raise ValueError(f"{name} expected ascending finite numbers, got {grid.tolist()}")
    return grid
