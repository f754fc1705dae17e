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

"""Rows L1 to L7, F4 and F10: labels, slice tags and scores mean what they say."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from monai_rrr.data import BrainBoxCache, LoadBrainBoxd, load_datalist, read_tags, verify_cases, write_tags
from monai_rrr.errors import ConfigError, DataError, DatasetError
from monai_rrr.metrics import RegionScores, region_scores
from monai_rrr.objectives import TagClassification
from monai_rrr.transforms import to_labels, to_regions
from monai_rrr.utils.conventions import CONVENTIONS

QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize(
    ("old", "new", "convention", "text"),
    [
        (4, 3, "brats2018", r"expected label values \[0, 1, 2, 4\].*got \[0, 1, 2, 3\].*fit brats2023 or msd"),
        (4, 4, "brats2023", r"expected label values \[0, 1, 2, 3\].*got \[0, 1, 2, 4\].*fit brats2018"),
        (4, 4, "msd", r"got \[0, 1, 2, 4\].*fit brats2018"),
    ],
)
def test_l1_wrong_convention(cohort: Any, old: int, new: int, convention: str, text: str) -> None:
    for case_id in ("case_a", "case_b", "case_c", "case_d"):
        cohort.rewrite("label", lambda array: np.where(array == old, new, array).astype(np.uint8), case_id=case_id)
    with pytest.raises(DatasetError, match=rf"(?s)4 faults.*{text}"):
        cohort.verify(convention).raise_if_faulty()


def test_l2_no_convention(cohort: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected a label convention out of brats2018, brats2023, msd, got none"):
        cohort.verify(None)


def set_one(value: float, dtype: Any) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype)
        array[16, 15, 12] = value
        return array

    return change


@pytest.mark.parametrize(
    ("value", "dtype", "code", "text"),
    [
        (5, np.uint8, "label-values", r"not declared: 5 \(1 voxels\)"),
        (-1, np.int16, "label-values", r"not declared: -1 \(1 voxels\)"),
        (255, np.uint8, "label-values", r"not declared: 255 \(1 voxels\)"),
        (257, np.int16, "label-values", r"not declared: 257 \(1 voxels\)"),
        (0.5, np.float32, "label-fractional", "got 1 fractional voxels such as 0.5"),
        (2.99, np.float64, "label-fractional", "got 1 fractional voxels such as 2.99"),
        (1e30, np.float32, "label-values", "not declared: 1000000"),
    ],
)
def test_l3_stray_values(cohort: Any, value: float, dtype: Any, code: str, text: str) -> None:
    cohort.rewrite("label", set_one(value, dtype))
    with pytest.raises(DatasetError, match=text) as caught:
        cohort.verify().raise_if_faulty()
    (fault,) = caught.value.faults
    assert (fault.code, fault.case_id, fault.path) == (code, "case_b", cohort.shown("label"))


def test_l3_rounding_noise_is_rounded(cohort: Any, tmp_path: Path) -> None:
    cohort.rewrite("label", lambda array: array.astype(np.float32) * np.float32(1 + 2e-4))
    assert cohort.verify(tags=cohort.tags()).ok
    case = load_datalist(cohort.root)[1]
    label = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"), with_label=True)(case)["label"]
    assert set(label.unique().tolist()) == {0, 1, 2, 4}


@pytest.mark.parametrize(("value", "dtype"), [(0.5, np.float32), (257, np.int16), (-1, np.int16)])
def test_l3_stray_values_never_reach_a_training(cohort: Any, tmp_path: Path, value: float, dtype: Any) -> None:
    """A label that was not verified: neither rounded nor wrapped into 8 bits."""
    cohort.rewrite("label", set_one(value, dtype))
    load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"), with_label=True)
    with pytest.raises(DataError, match=r"\[label-(values|fractional)\] case case_b, field label, file "):
        load(load_datalist(cohort.root)[1])


@pytest.mark.parametrize("convention", CONVENTIONS)
@QUICK
@given(data=st.data())
def test_l4_f4_round_trip(convention: str, data: st.DataObject) -> None:
    values = st.sampled_from(sorted(CONVENTIONS[convention].values))
    dtype = data.draw(st.sampled_from([np.uint8, np.int16, np.int64, np.float32, np.float64]))
    label = data.draw(
        nps.arrays(dtype, nps.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=values.map(dtype))
    )
    regions = to_regions(label, convention)
    assert (regions[2] <= regions[1]).all()
    assert (regions[1] <= regions[0]).all()
    np.testing.assert_array_equal(to_labels(regions, convention), label)
    nested = data.draw(nps.arrays(np.uint8, (3, *label.shape), elements=st.integers(0, 1)))
    again = to_regions(to_labels(nested, convention), convention)
    assert (np.diff(again.astype(int), axis=0) <= 0).all()


@pytest.mark.parametrize("convention", CONVENTIONS)
@QUICK
@given(value=st.one_of(st.integers(-300, 300), st.floats(-10, 300, width=32)))
def test_l3_f4_everything_else_is_refused(convention: str, value: float) -> None:
    label = torch.zeros(2, 2, dtype=torch.float64)
    label[0, 1] = value
    near = round(value)
    if abs(value - near) <= 1e-3 and near in CONVENTIONS[convention].values:
        assert to_labels(to_regions(label, convention), convention)[0, 1] == near
    else:
        with pytest.raises(DataError, match=r"label-(values|fractional)"):
            to_regions(label, convention)


@pytest.mark.parametrize("empty", ["ET", "everything"])
def test_l5_empty_regions(cohort: Any, empty: str) -> None:
    gone = (4,) if empty == "ET" else (1, 2, 4)
    cohort.rewrite("label", lambda array: np.where(np.isin(array, gone), 0, array).astype(np.uint8))
    report = cohort.verify(tags=cohort.tags())
    assert report.ok
    assert [note.code for note in report.notes] == (["empty-foreground"] if empty == "everything" else [])


def test_l5_loss_is_finite_without_any_tag() -> None:
    from monai_rrr.attribution import record
    from monai_rrr.networks import MultimodalCAMNet

    network = MultimodalCAMNet(modalities=("t1",), num_classes=3, channels=(4,))
    batch = {
        "image": torch.randn(1, 1, 8, 8, 4),
        "brain": torch.ones(1, 1, 8, 8, 4, dtype=torch.bool),
        "present": torch.ones(1, 1, dtype=torch.bool),
        "class_label": torch.zeros(1, 3),
        "slice_label": torch.zeros(1, 3, 4),
    }
    term = TagClassification()
    loss = term(record(network, batch["image"], term.layers), batch)
    assert torch.isfinite(loss)
    loss.backward()


def test_l5_rule_of_empty_regions_and_their_count() -> None:
    empty, full = torch.zeros(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4)
    full[:, :, 1:3, 1:3, 1:3] = 1
    metric = RegionScores(spacing=(1, 1, 1), regions=["ET"])
    metric(y_pred=empty, y=empty)
    metric(y_pred=full, y=empty)
    metric(y_pred=full, y=full)
    summary = metric.summary()["ET"]
    assert (summary["both_empty"], summary["one_empty"]) == (2, 2)
    assert summary["dice"] == pytest.approx((2 * 1.0 + 2 * 0.0 + 2 * 1.0) / 6)
    assert np.isfinite(list(summary.values())).all()


def test_l6_class_absent_in_the_whole_training_set(cohort: Any) -> None:
    path = cohort.tags()
    write_tags(path, {case_id: {**spans, "ET": None} for case_id, spans in read_tags(path).items()})
    cases = load_datalist(cohort.root, with_labels=False)
    (fault,) = verify_cases(cases, tags=read_tags(path)).faults
    assert (fault.code, fault.field) == ("region-absent", "ET")
    assert "expected ET in at least one of 4 cases, found none" in str(fault)
    allowed = verify_cases(cases, tags=read_tags(path), allow_absent=["ET"])
    assert allowed.ok
    assert [note.code for note in allowed.notes] == ["region-absent"]


def brute_force_dice(pred: np.ndarray, truth: np.ndarray) -> float:
    both = sum(1 for p, t in zip(pred.ravel(), truth.ravel(), strict=True) if p and t)
    total = int(pred.sum()) + int(truth.sum())
    return 2 * both / total if total else 1.0


def surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """List voxels with background, or the border of the image, beside one of their six faces."""
    padded, found = np.pad(mask, 1), []
    for voxel in np.argwhere(mask):
        sides = [voxel + 1 + step * direction for step in np.eye(3, dtype=int) for direction in (-1, 1)]
        if not all(padded[tuple(side)] for side in sides):
            found.append(tuple(voxel))
    return found


def brute_force_distances(pred: np.ndarray, truth: np.ndarray, spacing: np.ndarray) -> tuple[float, float]:
    """Return HD95 and ASSD in mm; the diagonal, if one mask is empty."""
    if not pred.any() or not truth.any():
        far = 0.0 if not (pred.any() or truth.any()) else float(np.linalg.norm(np.array(pred.shape) * spacing))
        return far, far
    a, b = (np.array(surface(mask)) * spacing for mask in (pred, truth))
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1)
    there, back = apart.min(1), apart.min(0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), float(np.concatenate([there, back]).mean())


def random_masks(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    shares = itertools.cycle([0.0, 0.05, 0.5, 0.95, 1.0])
    return [
        (generator.random((4, 5, 3)) < share, generator.random((4, 5, 3)) < generator.choice([0, 0.1, 0.6, 1]))
        for share, _ in zip(shares, range(count), strict=False)
    ]


def test_l7_f10_scores_equal_a_brute_force_reference() -> None:
    spacing = np.array([1.0, 2.0, 3.0])
    for pred, truth in random_masks(200):
        found = region_scores(pred[None], truth[None], spacing.tolist(), regions=["WT"])["WT"]
        hd95, assd = brute_force_distances(pred, truth, spacing)
        assert found["dice"] == pytest.approx(brute_force_dice(pred, truth), abs=1e-6)
        assert found["hd95"] == pytest.approx(hd95, rel=1e-5, abs=1e-6)
        assert found["assd"] == pytest.approx(assd, rel=1e-5, abs=1e-6)
        assert 0 <= found["dice"] <= 1


@QUICK
@given(masks=nps.arrays(np.bool_, (2, 3, 4, 3)))
def test_f10_scores_are_symmetric(masks: np.ndarray) -> None:
    pred, truth = masks[:1], masks[1:]
    one = region_scores(pred, truth, (1.0, 1.0, 2.0), regions=["WT"])["WT"]
    assert one == pytest.approx(region_scores(truth, pred, (1.0, 1.0, 2.0), regions=["WT"])["WT"], rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.5])
def test_l7_what_is_no_mask_is_refused(value: float) -> None:
    pred = torch.zeros(1, 3, 3, 3)
    pred[0, 1, 1, 1] = value
    with pytest.raises(ValueError, match="pred expected 0 or 1 everywhere, got"):
        region_scores(pred, torch.zeros(1, 3, 3, 3), (1, 1, 1), regions=["WT"])


def moved(spans: Any, by: int) -> Any:
    return {region: span and (span[0] + by, span[1] + by) for region, span in spans.items()}


@pytest.mark.parametrize("field", ["WT", "TC", "ET"])
def test_label_and_tags_contradict_each_other(cohort: Any, field: str) -> None:
    path = cohort.tags()
    table = read_tags(path)
    inner = {"WT": ("WT", "TC", "ET"), "TC": ("TC", "ET"), "ET": ("ET",)}[field]
    table["case_b"] = {**table["case_b"], **dict.fromkeys(inner)}
    write_tags(path, table)
    faults = [(code, case, region) for code, case, region, _ in cohort.faults(tags=path)]
    assert faults == [("tags-label", "case_b", region) for region in inner]


@pytest.mark.parametrize(("by", "tolerance", "rejected"), [(1, 0, True), (1, 1, False), (2, 1, True)])
def test_tags_counted_from_1(cohort: Any, by: int, tolerance: int, rejected: bool) -> None:
    path = cohort.tags()
    write_tags(path, {case_id: moved(spans, by) for case_id, spans in read_tags(path).items()})
    report = cohort.verify(tags=path, tag_tolerance=tolerance)
    assert [fault.code for fault in report.faults] == (["tags-label"] * 12 if rejected else [])


def test_tags_counted_from_the_top(cohort: Any) -> None:
    path = cohort.tags()
    turned = {
        case_id: {region: (25 - span[1], 25 - span[0]) for region, span in spans.items()}
        for case_id, spans in read_tags(path).items()
    }
    write_tags(path, turned)
    report = cohort.verify(tags=path)
    assert {fault.hint for fault in report.faults if fault.case_id == "case_d"} == {
        "the tags count from the superior end"
    }


def test_tags_outside_the_image(cohort: Any, tmp_path: Path) -> None:
    path = cohort.tags()
    table = read_tags(path)
    table["case_b"]["WT"] = (table["case_b"]["WT"][0], 26)
    write_tags(path, table)
    assert [(c, case, region) for c, case, region, _ in cohort.faults(tags=path)] == [("tags", "case_b", "WT")]
    load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"), table)
    with pytest.raises(DataError, match=r"\[tags\] case case_b, field WT: expected slices 0 to 25, got WT 6-26"):
        load(load_datalist(cohort.root)[1])


def test_label_outside_the_brain(cohort: Any) -> None:
    cohort.rewrite("label", lambda array: np.roll(array, (15, 14, 12), (0, 1, 2)))
    (fault,) = cohort.verify().faults
    assert (fault.code, fault.case_id, fault.path) == ("label-outside", "case_b", cohort.shown("label"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("7", "the table has '7'"), ("7.0", "the table has '7.0'"), ("CASE_0", "add a row for it")],
)
def test_ids_that_a_spreadsheet_changed(cohort: Any, name: str, hint: str) -> None:
    (cohort.root / "case_b").rename(cohort.root / "0007")
    for path in (cohort.root / "0007").iterdir():
        path.rename(path.with_name(path.name.replace("case_b", "0007")))
    path = cohort.tags()
    path.write_text(path.read_text().replace("0007,", f"{name},"))
    (fault,) = cohort.verify(tags=path).faults
    assert (fault.code, fault.case_id) == ("tags-missing", "0007")
    assert hint in str(fault)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"WT": [1, 2], "WT": [3, 4], "TC": null, "ET": null}}',
        '{"a": {"WT": [NaN, 2], "TC": null, "ET": null}}',
        '{"a": {"WT": [1.0, 2.0], "TC": null, "ET": null}}',
        '{"a": {"WT": [true, 2], "TC": null, "ET": null}}',
        '{"a": {"WT": ["\u0663", 4], "TC": null, "ET": null}}',
        '{"e\\u0301": {"WT": null, "TC": null, "ET": null}, "\\u00e9": {"WT": null, "TC": null, "ET": null}}',
    ],
)
def test_tags_in_json_that_readers_understand_differently(tmp_path: Path, text: str) -> None:
    (tmp_path / "tags.json").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"(?s)1 fault.*tags-row"):
        read_tags(tmp_path / "tags.json")
