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

from __future__ import annotations

import inspect

import numpy as np
import pytest

from monai_rrr.metrics import (
    TagCalibration,
    apply_threshold,
    calibrate_on_tags,
    label_free_threshold,
    oracle_threshold,
    region_scores,
)
from monai_rrr.metrics.calibration import MIN_AREAS_MM2, THRESHOLDS

SPACING = (3.0, 3.3, 3.0)


def _case(rng, shape=(10, 9, 12), present=True):
    """A blurry heatmap around a box, the box, and its tags."""
    truth = np.zeros(shape, dtype=bool)
    if present:
        low = [int(rng.integers(1, n // 2)) for n in shape]
        truth[tuple(slice(s, s + int(rng.integers(2, 5))) for s in low)] = True
    score = -3 + 5 * truth + rng.normal(0, 1.2, shape)
    heatmap = (1 / (1 + np.exp(-score))).astype(np.float32)
    brain = rng.random(shape) < 0.95
    return heatmap, truth & brain, brain


def _cohort(seed=0, cases=4):
    rng = np.random.default_rng(seed)
    heatmaps, truths, brains = zip(*[_case(rng, present=k > 0) for k in range(cases)], strict=True)
    return heatmaps, truths, brains, [truth.any(axis=(0, 1)) for truth in truths]


def _presence(point, heatmaps, brains):
    threshold, area = point
    return [
        apply_threshold(h, threshold, area, SPACING, b).any(axis=(0, 1)) for h, b in zip(heatmaps, brains, strict=True)
    ]


def _extent_error(found, tags):
    errors = []
    for p, t in zip(found, tags, strict=True):
        if p.any() and t.any():
            p, t = np.flatnonzero(p), np.flatnonzero(t)
            errors.append(3.0 * (abs(p[0] - t[0]) + abs(p[-1] - t[-1])))
        else:
            errors.append(3.0 * 2 * len(p) if p.any() or t.any() else 0.0)
    return np.mean(errors)


def _all_points():
    return [(float(t), a) for a in MIN_AREAS_MM2 for t in THRESHOLDS[::6]]


@pytest.mark.parametrize("seed", range(3))
def test_f1_equals_brute_force_over_applied_masks(seed):
    heatmaps, _, brains, tags = _cohort(seed)
    point = calibrate_on_tags(heatmaps, tags, brains, [SPACING] * 4)
    labels = np.concatenate(tags)

    def f1(threshold, area):
        found = np.concatenate(_presence((threshold, area), heatmaps, brains))
        return 2 * (found & labels).sum() / (found.sum() + labels.sum())

    assert point.score == pytest.approx(f1(point.threshold, point.min_area_mm2))
    assert point.score >= max(f1(*p) for p in _all_points()) - 0.01 - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_extent_equals_brute_force_over_applied_masks(seed):
    heatmaps, _, brains, tags = _cohort(seed)
    point = calibrate_on_tags(heatmaps, tags, brains, [SPACING] * 4, criterion="extent")

    def error(threshold, area):
        return _extent_error(_presence((threshold, area), heatmaps, brains), tags)

    assert point.score == pytest.approx(error(point.threshold, point.min_area_mm2))
    assert point.score <= min(error(*p) for p in _all_points()) + 1 + 1e-9


def test_expected_dice_sees_the_region_around_its_hottest_voxels():
    """A hot core tells the slice; its warm surroundings are part of the region all the same."""
    rng = np.random.default_rng(0)
    heatmap = 0.3 * rng.random((20, 20, 20))
    truth = np.zeros(heatmap.shape, dtype=bool)
    truth[6:11, 6:11, 6:14] = True
    heatmap[truth] = 0.4 + 0.2 * rng.random(truth.sum())
    heatmap[8, 8, 6:14] = 0.95
    case = ([heatmap], [truth.any(axis=(0, 1))], [np.ones(heatmap.shape)], [SPACING])

    def dice(criterion):
        mask = heatmap > calibrate_on_tags(*case, criterion=criterion).threshold
        return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())

    assert dice("f1") < 0.2
    assert dice("f1_dice") > 0.95


def test_cases_without_tags_are_left_empty_where_that_pays():
    rng = np.random.default_rng(0)
    tumor, control = 0.3 * rng.random((16, 16, 100)), 0.3 * rng.random((16, 16, 100))
    tumor[6:11, 6:11, 10:80] = 0.6
    control[4:6, 4:6, 9] = 0.7  # 40 mm² in one slice of 200: F1 hardly minds
    tags = [np.isin(np.arange(100), np.arange(10, 80)), np.zeros(100)]
    case = ([tumor, control], tags, [np.ones(tumor.shape)] * 2, [SPACING] * 2)
    for criterion, is_empty in (("f1", False), ("f1_dice", True)):
        point = calibrate_on_tags(*case, criterion=criterion)
        mask = apply_threshold(control, point.threshold, point.min_area_mm2, SPACING)
        assert (not mask.any()) == is_empty


def test_middle_of_the_plateau():
    heatmap = np.full((6, 6, 6), 0.01)
    heatmap[2:4, 2:4, 2:4] = 0.9
    point = calibrate_on_tags([heatmap], [[0, 0, 1, 1, 0, 0]], [np.ones(heatmap.shape)], [SPACING])
    middle = 1 / (1 + np.exp(-(np.log(0.9 / 0.1) + np.log(0.01 / 0.99)) / 2))
    assert point.threshold == pytest.approx(middle, rel=0.06)
    assert (point.min_area_mm2, point.score) == (0.0, 1.0)


def test_minimum_area_is_used_only_when_it_pays():
    heatmap = np.full((10, 10, 10), 0.01)
    heatmap[2:6, 2:6, 2:4] = 0.9
    heatmap[0, 0, 5:] = 0.95  # one bright voxel (9 mm²) in every slice without tumor
    tags = [0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    point = calibrate_on_tags([heatmap], [tags], [np.ones(heatmap.shape)], [SPACING])
    assert (point.min_area_mm2, point.score) == (10.0, 1.0)
    mask = apply_threshold(heatmap, point.threshold, point.min_area_mm2, SPACING)
    assert mask.any(axis=(0, 1)).astype(int).tolist() == tags


def test_area_is_in_mm2_and_slices_weigh_their_thickness():
    heatmap = np.zeros((4, 4, 3))
    heatmap[0, 0, 0] = heatmap[0, 0, 2] = 0.9
    coarse, fine = TagCalibration([0.5], [0.0, 50.0]), TagCalibration([0.5], [0.0, 50.0])
    coarse.add(heatmap, [1, 0, 0], np.ones(heatmap.shape), (8.0, 8.0, 4.0))
    fine.add(heatmap, [1, 0, 0], np.ones(heatmap.shape), (1.0, 1.0, 1.0))
    assert coarse.solve().score == fine.solve().score == pytest.approx(2 / 3)
    coarse.add(heatmap, [1, 0, 1], np.ones(heatmap.shape), (1.0, 1.0, 2.0))
    # hits 4 + 2 * 2 mm, false 4 mm, missed 0 mm
    assert coarse.solve().score == pytest.approx(16 / 20)


def test_region_absent_everywhere_gives_empty_masks():
    rng = np.random.default_rng(0)
    heatmaps = [0.6 * rng.random((8, 8, 8)) for _ in range(3)]
    brains = [np.ones((8, 8, 8))] * 3
    for criterion, score in (("f1", 1.0), ("extent", 0.0), ("f1_dice", 1.0)):
        point = calibrate_on_tags(heatmaps, [np.zeros(8)] * 3, brains, [SPACING] * 3, criterion=criterion)
        assert point.score == score
        assert not np.concatenate(_presence((point.threshold, point.min_area_mm2), heatmaps, brains)).any()


def test_reads_no_mask():
    assert set(inspect.signature(calibrate_on_tags).parameters) == {
        "heatmaps",
        "slice_labels",
        "brains",
        "spacings",
        "criterion",
    }
    assert set(inspect.signature(TagCalibration.add).parameters) == {
        "self",
        "heatmap",
        "slice_label",
        "brain",
        "spacing",
    }
    heatmaps, truths, brains, tags = _cohort()
    moved = [np.roll(truth, 3, axis=0).any(axis=(0, 1)) for truth in truths]
    assert calibrate_on_tags(heatmaps, moved, brains, [SPACING] * 4) == calibrate_on_tags(
        heatmaps, tags, brains, [SPACING] * 4
    )


def _dice(heatmap, truth, brain, threshold, area):
    mask = apply_threshold(heatmap, threshold, area, SPACING, brain)
    return region_scores(mask[None], truth[None], SPACING, ["WT"], ["dice"])["WT"]["dice"]


@pytest.mark.parametrize("seed", range(2))
def test_oracle_equals_brute_force_and_bounds_the_others(seed):
    heatmaps, truths, brains, tags = _cohort(seed, cases=3)
    cases = list(zip(heatmaps, truths, brains, strict=True))
    oracle = oracle_threshold(heatmaps, truths, brains, [SPACING] * 3)

    def mean_dice(threshold, area):
        return np.mean([_dice(*case, threshold, area) for case in cases])

    assert oracle.score == pytest.approx(mean_dice(oracle.threshold, oracle.min_area_mm2), abs=1e-6)
    points = [(float(t), a) for a in MIN_AREAS_MM2[::2] for t in THRESHOLDS[::12]]
    assert oracle.score >= max(mean_dice(*p) for p in points) - 1e-6
    tagged = calibrate_on_tags(heatmaps, tags, brains, [SPACING] * 3)
    label_free = np.mean([_dice(*case, label_free_threshold(case[0], case[2]), 0.0) for case in cases])
    assert mean_dice(tagged.threshold, tagged.min_area_mm2) <= oracle.score + 1e-6
    assert label_free < mean_dice(tagged.threshold, tagged.min_area_mm2)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: TagCalibration().solve(), "at least one case, got none"),
        (lambda: oracle_threshold([], [], [], []), "at least one case, got none"),
        (lambda: TagCalibration([0.5, 0.2]), r"thresholds expected ascending finite numbers, got \[0.5, 0.2\]"),
        (lambda: TagCalibration([0.5], []), r"minimum areas expected ascending finite numbers, got \[\]"),
        (lambda: _add(slice_label=[0, 1]), r"slice label \(2,\) does not match the slices of heatmap \(3, 3, 3\)"),
        (lambda: _add(slice_label=[0, 0.5, 1]), r"slice label expected 0 or 1, got \[0.0, 0.5, 1.0\]"),
        (lambda: _add(brain=np.ones((3, 3))), r"brain \(3, 3\) does not match image \(3, 3, 3\)"),
        (lambda: _add(spacing=(1.0, 1.0)), "spacing expected 3 positive values in mm"),
        (lambda: _add(heatmap=np.full((3, 3, 3), np.nan)), "finite values, got 27 NaN or Inf voxels"),
        (lambda: _add().solve("dice"), "criterion expected 'f1', 'extent' or 'f1_dice', got 'dice'"),
        (lambda: calibrate_on_tags([np.zeros((2, 2, 2))], [], [], []), "shorter"),
    ],
)
def test_exception(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def _add(**change):
    case = {
        "heatmap": np.zeros((3, 3, 3)),
        "slice_label": [0, 1, 0],
        "brain": np.ones((3, 3, 3)),
        "spacing": SPACING,
    }
    calibration = TagCalibration()
    calibration.add(**(case | change))
    return calibration
