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

"""Habits are recovered from masks that were drawn with them."""

from __future__ import annotations

import numpy as np
import pytest

from monai_rrr.data import AnnotatorSettings, simulate_annotator
from monai_rrr.metrics import Tendency, estimate_tendency, miss_threshold, surface_shift


def tumor(radius: float, satellites: int = 0) -> np.ndarray:
    """A tumor of 48 voxels of 2 mm, with single-voxel satellites of 8 mm3."""
    axis = np.arange(48) + 0.5 - 24
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    label = np.select([distance < radius / 3, distance < radius / 1.6, distance < radius], [1, 3, 2], 0)
    for index in range(satellites):
        label[3, 3, 3 + 4 * index] = 2
    return label.astype(np.uint8)


CASES = [tumor(radius) for radius in (10.0, 12.0, 14.0)]
SPACING = (2.0, 2.0, 2.0)


def recovered(settings: AnnotatorSettings, cases: list[np.ndarray] = CASES) -> Tendency:
    drawn = [
        simulate_annotator(case, SPACING, settings, np.random.RandomState(number)) for number, case in enumerate(cases)
    ]
    return estimate_tendency(drawn, cases, [SPACING] * len(cases))


@pytest.mark.parametrize("offset", [-4.0, -2.0, 0.0, 2.0, 4.0])
def test_the_shift(offset: float) -> None:
    found = recovered(AnnotatorSettings(offset_mm=offset, sigma_mm=0.5))
    assert found.offset_mm == pytest.approx(offset, abs=0.5)
    assert found.miss_mm3 == 0.0


def test_the_shift_in_both_directions() -> None:
    small, large = tumor(9.0) > 0, tumor(12.0) > 0
    there, back = surface_shift(large, small, SPACING), surface_shift(small, large, SPACING)
    assert there.mean() == pytest.approx(6.0, abs=0.75)
    assert back.mean() == pytest.approx(-6.0, abs=0.75)
    assert surface_shift(small, small, SPACING).tolist() == [0.0] * len(surface_shift(small, small, SPACING))
    assert surface_shift(small, np.zeros_like(small), SPACING).size == 0


def test_shaking_and_spread_between_cases() -> None:
    still, shaky = (recovered(AnnotatorSettings(sigma_mm=sigma)).sigma_mm for sigma in (0.0, 2.0))
    assert still == 0.0
    assert shaky == pytest.approx(2.0, abs=0.6)
    steady, moody = (recovered(AnnotatorSettings(sigma_mm=0.5, offset_sd_mm=sd)).offset_sd_mm for sd in (0.0, 3.0))
    assert moody > steady + 1.0


def test_confusion_of_tissues() -> None:
    found = recovered(AnnotatorSettings(ncr_to_et_mm=4.0, sigma_mm=0.0)).confusion
    assert found.sum(1).tolist() == pytest.approx([0, 1, 1, 1])
    assert found[1, 3] > 0.5
    assert found[1, 2] == found[3, 1] == found[2, 3] == 0
    assert (recovered(AnnotatorSettings(sigma_mm=0.0)).confusion[1:] == np.eye(4)[1:]).all()


def test_what_is_missed() -> None:
    cases = [tumor(12.0, satellites=4), tumor(14.0, satellites=5)]
    found = recovered(AnnotatorSettings(miss=1.0, small_mm3=150.0, sigma_mm=0.0), cases)
    assert 8.0 < found.miss_mm3 < 60_000
    assert recovered(AnnotatorSettings(sigma_mm=0.0), cases).miss_mm3 == 0.0


def test_the_limit_equals_a_search() -> None:
    rng = np.random.RandomState(0)
    for _ in range(100):
        sizes = rng.randint(1, 12, rng.randint(1, 9)).astype(float)
        lesions = [(float(size), bool(rng.uniform() < size / 12)) for size in sizes]

        def exceptions(limit: float, lesions: list[tuple[float, bool]] = lesions) -> int:
            return sum((size > limit) != found for size, found in lesions)

        limits = [0.0, *sorted(set(sizes))]
        best = min(exceptions(limit) for limit in limits)
        assert exceptions(miss_threshold(lesions)) == best
    assert miss_threshold([]) == 0.0
    assert miss_threshold([(5.0, False), (7.0, False)]) == 7.0


def test_tendencies_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"at least one mask, got \[0, 0, 0\]"):
        estimate_tendency([], [], [])
    with pytest.raises(ValueError, match="does not match reference"):
        estimate_tendency([np.zeros((2, 2, 2))], [np.zeros((2, 2, 3))], [SPACING])
    nothing = estimate_tendency([np.zeros((3, 3, 3))], [np.zeros((3, 3, 3))], [SPACING])
    assert np.isnan(nothing.offset_mm)
