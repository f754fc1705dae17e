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

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from monai_rrr.report import Evidence, brain_mask, measure
from monai_rrr.report.audit_case import PLACES, canonical, canonical_spacing

SHAPE = (20, 24, 16)


def brain() -> NDArray[np.bool_]:
    grid = np.indices(SHAPE).T - np.array([10, 12, 8])
    return np.asarray(((grid / np.array([8, 9, 6])) ** 2).sum(-1).T <= 1)


def evidence(**changes: Any) -> Evidence:
    head, lesion = brain(), np.zeros(SHAPE, bool)
    lesion[8:11, 10:13, 6:9] = True
    given: dict[str, Any] = {
        "case_id": "a",
        "heatmap": np.ones(SHAPE, np.float32),
        "images": {"flair": head.astype(np.float32) * 100},
        "lesion": lesion,
        "spacing": (2.0, 2.0, 3.0),
        "class_name": "class 1",
    }
    return Evidence(**{**given, **changes})


class TestBrain:
    def test_ellipsoid_is_kept(self) -> None:
        found = brain_mask({"t1": brain() * 5.0})
        assert (found == brain()).mean() > 0.98
        assert not (found & ~brain()).any()

    def test_marks_beside_it_are_not_part_of_it(self) -> None:
        image = brain() * 5.0
        image[1:4, 1, :] = image[17:19, 20:23, 3] = image[:, 3, 8] = 9.0  # a line, a blob, a line that touches
        found = brain_mask({"t1": image})
        assert not found[1:4, 1].any()
        assert not found[17:19, 20:23, 3].any()
        assert found.sum() == pytest.approx(brain_mask({"t1": brain() * 5.0}).sum(), rel=0.01)

    def test_holes_are_filled_and_modalities_joined(self) -> None:
        first, second = brain() * 5.0, brain() * 3.0
        first[10, 12, 8] = second[10, 12, 8] = 0
        first[:10] = 0
        assert brain_mask({"t1": first, "t2": second})[10, 12, 8]
        np.testing.assert_array_equal(brain_mask({"t1": first, "t2": second}), brain_mask({"t1": brain() * 1.0}))

    def test_not_skull_stripped(self) -> None:
        assert brain_mask({"t1": np.ones(SHAPE)}).all()
        assert brain_mask({"t1": np.zeros(SHAPE)}).all()


class TestMeasure:
    def test_shares_equal_the_loop(self) -> None:
        rng = np.random.default_rng(0)
        given = evidence(heatmap=rng.normal(size=SHAPE).astype(np.float32))
        found, head = measure(given), brain_mask(given.images)
        sums = dict.fromkeys(PLACES, 0.0)
        for place in np.ndindex(*SHAPE):
            name = PLACES[0] if given.lesion[place] else PLACES[1] if head[place] else PLACES[2]
            sums[name] += max(float(given.heatmap[place]), 0.0)
        total = sum(sums.values())
        assert found.shares == pytest.approx({name: value / total for name, value in sums.items()}, rel=1e-4)
        assert sum(found.shares.values()) == pytest.approx(1)
        assert found.badness == pytest.approx(1 - found.shares["lesion"])

    def test_maps_that_know_nothing(self) -> None:
        given = evidence()
        found, head = measure(given), brain_mask(given.images)
        assert found.brain_shares["lesion"] == pytest.approx(27 / head.sum())
        assert found.brain_shares["outside of the brain"] == 0
        box = 17 * 19 * 13
        assert found.uniform_shares["lesion"] == pytest.approx(27 / box)
        assert found.uniform_shares["outside of the brain"] == pytest.approx(1 - head.sum() / box)
        same = measure(evidence(heatmap=head.astype(np.float32)))
        assert same.lift == pytest.approx(1)
        assert same.shares == pytest.approx(found.brain_shares)

    def test_evidence_in_the_lesion(self) -> None:
        given = evidence()
        found = measure(evidence(heatmap=given.lesion.astype(np.float32)))
        assert found.shares == {"lesion": 1.0, "rest of the brain": 0.0, "outside of the brain": 0.0}
        assert found.hit == 1
        assert found.badness == 0

    def test_pointing_tolerance_is_in_mm(self) -> None:
        heatmap = np.zeros(SHAPE, np.float32)
        heatmap[9, 11, 10] = 1  # two slices of 3 mm above the lesion
        assert [measure(evidence(heatmap=heatmap), mm).hit for mm in (5.9, 6.0)] == [0, 1]

    @pytest.mark.parametrize("lesion", [None, np.zeros(SHAPE, bool)])
    def test_without_a_lesion(self, lesion: Any) -> None:
        found = measure(evidence(lesion=lesion))
        assert not found.has_lesion
        assert np.isnan(found.shares["lesion"])
        assert np.isnan(found.hit)
        assert np.isnan(found.lift)
        assert found.shares["rest of the brain"] + found.shares["outside of the brain"] == pytest.approx(1)
        assert found.badness == found.shares["outside of the brain"]

    def test_no_evidence_is_worst(self) -> None:
        found = measure(evidence(heatmap=-np.ones(SHAPE, np.float32)))
        assert np.isnan(list(found.shares.values())).all()
        assert found.badness > 1

    def test_no_outside(self) -> None:
        found = measure(evidence(images={"t1": np.ones(SHAPE, np.float32)}))
        assert not found.stripped
        assert found.shares["outside of the brain"] == 0


def test_canonical() -> None:
    affine = np.array([[0, 0, 1.5, -5], [-1.0, 0, 0, 7], [0, 2.0, 0, 3], [0, 0, 0, 1.0]])
    array = np.arange(24).reshape(2, 3, 4)
    assert canonical_spacing(affine) == (1.5, 1.0, 2.0)
    turned = canonical(array, affine)
    assert turned.shape == (4, 2, 3)
    assert turned[0, 0, 0] == array[1, 0, 0]
