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

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, write_metrics_reports
from scipy import ndimage

from monai_rrr.metrics import RegionScores, region_scores, segmentation

SPACING = (1.0, 1.5, 3.0)


def _surface(mask):
    found = []
    for voxel in np.argwhere(mask):
        for axis in range(3):
            for step in (-1, 1):
                beside = voxel.copy()
                beside[axis] += step
                outside = beside[axis] < 0 or beside[axis] >= mask.shape[axis]
                if outside or not mask[tuple(beside)]:
                    found.append(tuple(voxel))
    return np.array(sorted(set(found)), dtype=float) * SPACING


def reference(pred, truth):
    """The definitions, voxel by voxel."""
    if not pred.any() and not truth.any():
        return 1.0, 0.0, 0.0
    if not pred.any() or not truth.any():
        diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(pred.shape, SPACING, strict=True)))
        return 0.0, diagonal, diagonal
    dice = 2 * np.logical_and(pred, truth).sum() / (pred.sum() + truth.sum())
    distance = np.linalg.norm(_surface(pred)[:, None] - _surface(truth)[None], axis=-1)
    there, back = distance.min(axis=1), distance.min(axis=0)
    return dice, max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


def _random_mask(rng, shape):
    kind = rng.integers(8)
    if kind == 0:
        return np.zeros(shape, dtype=bool)
    if kind == 1:
        return np.ones(shape, dtype=bool)
    mask = rng.random(shape) < rng.choice([0.02, 0.2, 0.6])
    if kind < 6:
        corner = [slice(*sorted(rng.choice(n + 1, 2, replace=False))) for n in shape]
        box = np.zeros(shape, dtype=bool)
        box[tuple(corner)] = True
        mask &= box
    return mask


@pytest.mark.parametrize("seed", range(4))
def test_l7_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    for _ in range(17):
        shape = (3, *rng.integers(2, 8, size=3))
        pred, truth = (np.stack([_random_mask(rng, shape[1:]) for _ in range(3)]) for _ in range(2))
        found = region_scores(pred, truth, SPACING)
        for k, region in enumerate(("WT", "TC", "ET")):
            expected = reference(pred[k], truth[k])
            scores = [found[region][name] for name in ("dice", "hd95", "assd")]
            np.testing.assert_allclose(scores, expected, rtol=2e-6, atol=1e-6)


def test_nsd_is_the_share_of_surface_voxels_within_two_millimeters():
    mask, moved = np.zeros((2, 1, 12, 12, 12), dtype=bool)
    mask[:, 2:8, 2:8, 2:8] = True
    for shift, expected in ((1, 1.0), (3, None)):
        moved = np.roll(mask, shift, axis=1)
        surfaces = [one[0] & ~ndimage.binary_erosion(one[0]) for one in (mask, moved)]
        to = [ndimage.distance_transform_edt(~edge, sampling=(1.0, 1.5, 3.0)) for edge in surfaces]
        near = (to[1][surfaces[0]] <= 2).sum() + (to[0][surfaces[1]] <= 2).sum()
        share = near / sum(edge.sum() for edge in surfaces)
        found = region_scores(moved, mask, (1.0, 1.5, 3.0), ["WT"], ["nsd"])["WT"]["nsd"]
        assert found == pytest.approx(share)
        assert expected is None or found == expected
    assert found < 1
    empty = mask & False
    assert region_scores(empty, empty, SPACING, ["WT"], ["nsd"])["WT"]["nsd"] == 1
    assert region_scores(empty, mask, SPACING, ["WT"], ["nsd"])["WT"]["nsd"] == 0


@settings(max_examples=25, deadline=None)
@given(arrays(bool, (2, 1, 4, 3, 5)))
def test_f10_symmetric_and_bounded(masks):
    there = region_scores(*masks, SPACING, regions=["WT"])["WT"]
    assert there == pytest.approx(region_scores(masks[1], masks[0], SPACING, regions=["WT"])["WT"])
    assert 0 <= there["dice"] <= 1
    assert 0 <= there["assd"] <= math.hypot(4, 4.5, 15) + 1e-4
    assert 0 <= there["hd95"] <= math.hypot(4, 4.5, 15) + 1e-4


def test_crop_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    pred, truth = np.zeros((2, 3, 14, 12, 10), dtype=bool)
    pred[:, 0:5, 3:8, 4:9] = rng.random((3, 5, 5, 5)) < 0.7
    truth[:, 2:9, 5:12, 1:6] = rng.random((3, 7, 7, 5)) < 0.7
    cropped = region_scores(pred, truth, SPACING)
    shape = torch.tensor(pred.shape[1:]).tolist()
    monkeypatch.setattr(segmentation, "generate_spatial_bounding_box", lambda mask: ([0, 0, 0], shape))
    assert region_scores(pred, truth, SPACING) == cropped


def test_symmetric_and_translation():
    mask = np.zeros((1, 12, 12, 12), dtype=bool)
    mask[:, 2:6, 2:6, 2:6] = True
    moved = np.roll(mask, 2, axis=3)
    there = region_scores(moved, mask, SPACING, regions=["WT"])["WT"]
    assert there == region_scores(mask, moved, SPACING, regions=["WT"])["WT"]
    assert there["dice"] == 0.5
    assert there["hd95"] == 6.0


def test_l5_rule_for_empty_regions():
    pred, truth = np.zeros((2, 3, 4, 4, 4), dtype=bool)
    pred[1, 0, 0, 0] = truth[2, 1, 1, 1] = True
    found = region_scores(pred, truth, (3.0, 4.0, 0.0 + 1e-9))
    assert found["WT"] == {"dice": 1.0, "hd95": 0.0, "assd": 0.0, "both_empty": 1.0, "one_empty": 0.0}
    for region in ("TC", "ET"):
        assert found[region] == {"dice": 0.0, "hd95": 20.0, "assd": 20.0, "both_empty": 0.0, "one_empty": 1.0}


def test_diagonal_exceeds_every_distance():
    pred, truth = np.zeros((2, 1, 6, 5, 4), dtype=bool)
    pred[0, 0, 0, 0] = truth[0, -1, -1, -1] = True
    worst = region_scores(pred, truth, SPACING, regions=["WT"])["WT"]["hd95"]
    missed = region_scores(pred & False, truth, SPACING, regions=["WT"])["WT"]["hd95"]
    assert worst < missed == pytest.approx(math.hypot(6, 7.5, 12))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_number_types_agree(dtype):
    rng = np.random.default_rng(1)
    pred, truth = rng.random((2, 3, 5, 5, 5)) < 0.4
    assert region_scores(pred.astype(dtype), torch.as_tensor(truth.astype(dtype)), SPACING) == region_scores(
        pred, truth, SPACING
    )


def test_two_dimensions():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 2:4, 2:4] = True
    found = region_scores(mask.roll(1, 2), mask, (1.0, 2.0), regions=["WT"])["WT"]
    assert (found["dice"], found["hd95"]) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pred": torch.full((3, 4, 4, 4), float("nan"))}, r"pred expected 0 or 1 everywhere, got 192 NaN voxels"),
        ({"truth": torch.full((3, 4, 4, 4), 0.5)}, r"truth expected 0 or 1 everywhere, got values from 0.5 to 0.5"),
        ({"truth": torch.zeros(3, 4, 4, 5)}, r"pred \(3, 4, 4, 4\) does not match truth \(3, 4, 4, 5\)"),
        ({"regions": ["WT"]}, r"one channel per region \('WT',\), got masks of shape \(3, 4, 4, 4\)"),
        ({"spacing": (1.0, 1.0)}, r"spacing expected 3 positive values in mm, got \(1.0, 1.0\)"),
        ({"spacing": (1.0, 1.0, -1.0)}, r"spacing expected 3 positive values in mm"),
        ({"scores": ["iou"]}, r"scores expected some of .*'nsd'\), got \('iou',\)"),
    ],
)
def test_exception(change, match):
    given = {"pred": torch.zeros(3, 4, 4, 4), "truth": torch.zeros(3, 4, 4, 4), "spacing": (1.0, 1.0, 1.0)} | change
    with pytest.raises(ValueError, match=match):
        region_scores(**given)


def _batch(seed=0):
    rng = np.random.default_rng(seed)
    pred, truth = rng.random((2, 4, 3, 6, 6, 6)) < 0.3
    pred[1, 2], truth[1, 2] = False, False
    truth[2, 2] = False
    return torch.as_tensor(pred), torch.as_tensor(truth)


def test_metric_equals_function():
    pred, truth = _batch()
    metric = RegionScores(spacing=SPACING)
    metric(pred[:2], truth[:2])
    metric(list(pred[2:]), list(truth[2:]))
    each = [region_scores(p, t, SPACING) for p, t in zip(pred, truth, strict=True)]
    expected = [[case[region][name] for region in case for name in case[region]] for case in each]
    assert metric.get_buffer().tolist() == expected
    assert metric.columns[:5] == ("WT_dice", "WT_hd95", "WT_assd", "WT_both_empty", "WT_one_empty")
    dice = np.array([[case[region]["dice"] for region in case] for case in each])
    assert metric.aggregate().item() == pytest.approx(dice.mean())
    assert metric.aggregate("dice", "ET").item() == pytest.approx(dice[:, 2].mean())
    assert metric.aggregate("one_empty", "ET").item() == 0.25
    summary = metric.summary()
    assert summary["ET"]["both_empty"] == summary["ET"]["one_empty"] == 1.0
    assert summary["TC"]["hd95"] == pytest.approx(np.mean([case["TC"]["hd95"] for case in each]))
    metric.reset()
    with pytest.raises(ValueError, match="at least one patient, got none"):
        metric.summary()


def test_metric_reads_spacing_from_metatensor():
    pred, truth = _batch()
    affine = torch.diag(torch.tensor([-1.0, -1.5, 3.0, 1.0], dtype=torch.float64))
    metric = RegionScores()
    by_list = metric(list(pred), [MetaTensor(t, affine=affine) for t in truth])
    assert torch.equal(by_list, RegionScores(spacing=SPACING)(pred, truth))
    assert torch.equal(metric(pred, MetaTensor(truth, affine=affine)), by_list)
    assert type(metric.aggregate()) is torch.Tensor
    with pytest.raises(ValueError, match="spacing in mm or a MetaTensor as truth, got Tensor alone"):
        metric(pred, truth)


def test_metric_exception():
    pred, truth = _batch()
    with pytest.raises(ValueError, match="prediction and truth, got no truth"):
        RegionScores(spacing=SPACING)(pred)
    with pytest.raises(ValueError, match="NaN voxels"):
        RegionScores(spacing=SPACING)(torch.full(pred.shape, float("nan")), truth)
    metric = RegionScores(spacing=SPACING, scores=["dice"])
    metric(pred, truth)
    with pytest.raises(ValueError, match=r"expected a score of .* got hd95, None"):
        metric.aggregate("hd95")


def test_works_with_ignite_handler(tmp_path):
    pred, truth = _batch()
    metric = RegionScores(spacing=SPACING)
    engine = Engine(lambda engine, batch: batch)
    IgniteMetricHandler(metric_fn=metric).attach(engine, "val_mean_dice")
    for _ in range(2):
        engine.run([(pred[:1], truth[:1]), (pred[1:], truth[1:])])
    each = [region_scores(p, t, SPACING) for p, t in zip(pred, truth, strict=True)]
    expected = np.mean([case[region]["dice"] for case in each for region in case])
    assert engine.state.metrics["val_mean_dice"] == pytest.approx(expected)
    assert engine.state.metric_details["val_mean_dice"].shape == (4, len(metric.columns))
    write_metrics_reports(tmp_path, list("abcd"), None, engine.state.metric_details, None, class_labels=metric.columns)
    lines = (tmp_path / "val_mean_dice_raw.csv").read_text().splitlines()
    assert lines[0].split(",")[1:6] == list(metric.columns[:5])
    assert [line[0] for line in lines[1:]] == list("abcd")
