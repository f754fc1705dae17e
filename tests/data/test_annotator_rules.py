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

"""Simulated annotators: nested, in mm whatever the grid, and each with its habit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from monai_rrr.data import AnnotatorSettings, simulate_annotator
from monai_rrr.data.annotator_field import MixedNormals, gaussian_field
from monai_rrr.data.annotator_rules import ED, ET, KINDS, NCR

SIZE_MM = 72
STILL = {"sigma_mm": 0.0, "offset_sd_mm": 0.0}


def tumor(spacing: float, satellite_mm: float = 3.0) -> np.ndarray:
    """A ring-enhancing tumor with edema, and a satellite of edema, sampled on a grid."""
    centers = [(np.arange(int(SIZE_MM / spacing)) + 0.5) * spacing] * 3
    where = np.stack(np.meshgrid(*centers, indexing="ij"))

    def ball(center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        offset = where - np.reshape(center, (3, 1, 1, 1))
        return ((offset / np.reshape(radii, (3, 1, 1, 1))) ** 2).sum(0) < 1

    label = np.zeros(where.shape[1:], np.uint8)
    label[ball((34, 36, 36), (22, 18, 20))] = ED
    label[ball((36, 36, 34), (14, 12, 13))] = ET
    label[ball((36, 37, 34), (8, 7, 7))] = NCR
    label[ball((65, 10, 10), (satellite_mm,) * 3)] = ED
    return label


def regions(label: np.ndarray) -> dict[str, np.ndarray]:
    return {"WT": label > 0, "TC": (label == NCR) | (label == ET), "ET": label == ET}


def draw(label: np.ndarray, settings: AnnotatorSettings, seed: int = 0, spacing: float = 2.0) -> np.ndarray:
    return simulate_annotator(label, (spacing,) * 3, settings, np.random.RandomState(seed))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_masks_hold_the_four_classes_and_come_again(kind: str) -> None:
    label = tumor(2.0)
    shaky = replace(KINDS[kind], sigma_mm=1.0)  # 0.3 mm are lost on a grid of 2 mm
    first, again, other = (draw(label, shaky, seed) for seed in (3, 3, 4))
    assert first.dtype == np.uint8
    assert set(np.unique(first)) <= {0, NCR, ED, ET}
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert not draw(np.zeros_like(label), KINDS[kind]).any()


def test_regions_stay_nested_where_a_shift_alone_would_cross_them() -> None:
    label = tumor(2.0)
    shaky = AnnotatorSettings(sigma_mm=3.0, correlation_mm=6.0)
    drawn = regions(draw(label, shaky, seed=1))
    assert (drawn["ET"] <= drawn["TC"]).all()
    assert (drawn["TC"] <= drawn["WT"]).all()
    assert dice(drawn["WT"], label > 0) < 0.97, "the hand shook"


def test_volume_grows_with_every_millimeter() -> None:
    label = tumor(2.0)
    volumes = np.array(
        [
            [mask.sum() for mask in regions(draw(label, AnnotatorSettings(offset_mm=shift), seed=2)).values()]
            for shift in (-3.0, -1.5, 0.0, 1.5, 3.0)
        ]
    )
    assert (np.diff(volumes, axis=0) > 0).all()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_grid_does_not_matter(kind: str) -> None:
    """A case on 2 mm gets the mask that it gets on 1 mm, up to what the coarse grid does to the true mask itself."""
    fine, coarse = tumor(1.0), tumor(2.0)
    drawn_fine = regions(draw(fine, KINDS[kind], seed=5, spacing=1.0))
    drawn_coarse = regions(draw(coarse, KINDS[kind], seed=5, spacing=2.0).repeat(2, 0).repeat(2, 1).repeat(2, 2))
    truth_fine, truth_coarse = regions(fine), regions(coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    for region in ("WT", "TC"):
        limit = dice(truth_fine[region], truth_coarse[region])
        assert dice(drawn_fine[region], drawn_coarse[region]) > limit - 0.05, region
        assert drawn_coarse[region].sum() == pytest.approx(drawn_fine[region].sum(), rel=0.12), region


def test_shifts_are_in_mm_whatever_the_slices() -> None:
    label = np.zeros((60, 30, 12), np.uint8)
    label[20:40, 10:20, 3:9] = ED
    drawn = simulate_annotator(
        label, (1.0, 2.0, 5.0), AnnotatorSettings(offset_mm=4.0, sigma_mm=0.0), np.random.RandomState(0)
    )
    extents = [np.flatnonzero(drawn.any(tuple({0, 1, 2} - {axis})))[[0, -1]].tolist() for axis in range(3)]
    assert extents == [[16, 43], [8, 21], [2, 9]]


def test_over_and_under_shift_by_what_they_say() -> None:
    radius = 15.0
    centers = np.arange(64) + 0.5 - 32
    ball = (centers[:, None, None] ** 2 + centers[:, None] ** 2 + centers**2 < radius**2).astype(np.uint8) * ED
    for kind, shift in (("over", 2.0), ("under", -1.5)):
        drawn = simulate_annotator(ball, (1, 1, 1), replace(KINDS[kind], **STILL), np.random.RandomState(0))
        found = (3 * float((drawn > 0).sum()) / (4 * np.pi)) ** (1 / 3)
        assert found - radius == pytest.approx(shift, abs=0.45)


def test_the_smoother_rounds_off_but_keeps_small_lesions() -> None:
    label = tumor(1.0)
    spike = label.copy()
    spike[50:70, 36:38, 36:38] = ED
    smooth = draw(spike, replace(KINDS["smoother"], **STILL), spacing=1.0)
    assert not smooth[62:70, 36:38, 36:38].any(), "the spike is gone"
    assert smooth[65, 10, 10] == ED, "the satellite of 113 mm3 is not"
    forgetful = replace(KINDS["smoother"], small_mm3=1.0, smooth_mm=3.0, **STILL)
    assert draw(spike, forgetful, spacing=1.0)[65, 10, 10] == 0, "as it would be without the rule"


def test_the_confuser_moves_the_inner_borders_only() -> None:
    label = tumor(1.0)
    mixed = draw(label, replace(KINDS["confuser"], **STILL), spacing=1.0)
    np.testing.assert_array_equal(mixed > 0, label > 0)
    ncr_to_et, et_to_ed = ((label == a) & (mixed == b) for a, b in ((NCR, ET), (ET, ED)))
    assert ncr_to_et.sum() > 100
    assert et_to_ed.sum() > 100
    depth = ndimage.distance_transform_edt(label == NCR)
    assert depth[ncr_to_et].max() <= 2.5
    assert (mixed[depth > 2.5] == NCR).all()
    assert not ((mixed != label) & ~ncr_to_et & ~et_to_ed).any()


def test_the_confuser_flips_components_when_told_to() -> None:
    label = tumor(2.0)
    flipped = draw(label, AnnotatorSettings(flip=1.0, sigma_mm=0.0))
    assert not (flipped == ET).any()
    np.testing.assert_array_equal(regions(flipped)["TC"], regions(label)["TC"])


def test_the_misser_misses_small_lesions_nine_times_out_of_ten() -> None:
    label = tumor(2.0)
    label[30:32, 30:32, 5] = ET  # a second small one, of 32 mm3
    found = [draw(label, KINDS["misser"], seed)[(32, 30), (5, 30), (5, 5)] > 0 for seed in range(40)]
    assert 0.02 < np.mean(found) < 0.22
    assert draw(tumor(2.0, satellite_mm=5.0), KINDS["misser"])[32, 5, 5] == ED, "524 mm3 are not small"
    kept = draw(label, replace(KINDS["misser"], sigma_mm=0.0))
    np.testing.assert_array_equal(kept[:29, 10:28, 10:28], label[:29, 10:28, 10:28])


def test_a_missed_core_is_edema() -> None:
    label = np.where(tumor(2.0) > 0, ED, 0).astype(np.uint8)
    label[17:19, 18, 18] = ET
    drawn = draw(label, replace(KINDS["misser"], miss=1.0, sigma_mm=0.0, small_mm3=100.0))
    assert (drawn[17:19, 18, 18] == ED).all()


def test_where_the_image_has_no_edge_the_border_moves_out() -> None:
    label = tumor(2.0)
    flair = np.where(label > 0, 300.0, 100.0)
    flair[:, 18:] = 200.0  # the border can't be seen there
    flair += np.random.RandomState(0).normal(0, 5, flair.shape)
    habit = AnnotatorSettings(blur_mm=3.0, sigma_mm=0.0)
    drawn = simulate_annotator(label, (2, 2, 2), habit, np.random.RandomState(0), flair)
    grown = (drawn > 0) & (label == 0)
    assert grown[:, 20:].sum() > 3 * grown[:, :16].sum()
    with pytest.raises(ValueError, match="expected a FLAIR image"):
        draw(label, habit)


def test_drawing_the_offset_first_changes_nothing() -> None:
    label, settings = tumor(2.0), KINDS["over"]
    generator = np.random.RandomState(7)
    habit = settings.drawn(generator)
    assert habit.offset_sd_mm == 0
    assert habit.offset_mm != settings.offset_mm
    np.testing.assert_array_equal(simulate_annotator(label, (2, 2, 2), habit, generator), draw(label, settings, 7))


def test_the_field_has_the_deviation_and_correlation_it_says() -> None:
    fields = np.stack([gaussian_field(np.random.RandomState(i), (40, 40, 40), (2, 2, 2), 8.0) for i in range(8)])
    assert fields.std() == pytest.approx(1.0, abs=0.05)
    for axis in (1, 2, 3):
        moved = np.moveaxis(fields, axis, 0)
        for steps in (2, 4, 8):
            expected = np.exp(-((2 * steps) ** 2) / (2 * 8.0**2))
            assert np.mean(moved[steps:] * moved[:-steps]) == pytest.approx(expected, abs=0.08)


def test_who_leans_on_another_draws_alike() -> None:
    def field(share: float) -> np.ndarray:
        source = MixedNormals(np.random.RandomState(1), np.random.RandomState(2), share)
        return gaussian_field(source, (32, 32, 32), (4, 4, 4), 8.0)

    other = gaussian_field(np.random.RandomState(2), (32, 32, 32), (4, 4, 4), 8.0)
    np.testing.assert_array_equal(field(1.0), other)
    assert np.corrcoef(field(0.64).ravel(), other.ravel())[0, 1] == pytest.approx(0.8, abs=0.05)
    assert abs(np.corrcoef(field(0.0).ravel(), other.ravel())[0, 1]) < 0.1
    with pytest.raises(ValueError, match="share must be in"):
        field(1.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"miss": 1.5}, r"miss must be in \[0, 1\], got 1.5"),
        ({"sigma_mm": -1.0}, "sigma_mm must be in"),
        ({"offset_mm": 20.0}, r"offset_mm must be in \[-12, 12\]"),
        ({"smooth_mm": float("nan")}, "smooth_mm must be in"),
        ({"correlation_mm": 0.0}, "must be positive"),
    ],
)
def test_habits_out_of_range_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnnotatorSettings(**wrong)


def test_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="classes 0 to 3"):
        draw(np.full((4, 4, 4), 4), KINDS["expert"])
    with pytest.raises(ValueError, match="does not match label"):
        simulate_annotator(tumor(4.0), (4, 4, 4), KINDS["expert"], np.random.RandomState(0), np.zeros((2, 2, 2)))
