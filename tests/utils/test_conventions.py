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

import numpy as np
import pytest

from monai_rrr.errors import ConfigError, DataError
from monai_rrr.utils.conventions import CONVENTIONS, LabelConvention, get_convention, round_labels


@pytest.mark.parametrize(
    ("name", "values", "regions"),
    [
        ("brats2018", {0, 1, 2, 4}, {"WT": {1, 2, 4}, "TC": {1, 4}, "ET": {4}}),
        ("brats2023", {0, 1, 2, 3}, {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}}),
        ("msd", {0, 1, 2, 3}, {"WT": {1, 2, 3}, "TC": {2, 3}, "ET": {3}}),
    ],
)
def test_values_and_regions(name: str, values: set[int], regions: dict[str, set[int]]) -> None:
    convention = get_convention(name)
    assert convention.values == values
    assert {region: set(of) for region, of in convention.regions.items()} == regions
    assert list(convention.regions) == ["WT", "TC", "ET"]
    assert get_convention(convention) is convention


@pytest.mark.parametrize("name", [None, "", "brats", 4])
def test_l2_no_default(name: object) -> None:
    with pytest.raises(ConfigError, match=r"out of brats2018, brats2023, msd, got .*msd \(2 NCR, 1 ED, 3 ET\)"):
        get_convention(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "found", "text"),
    [
        ("brats2018", {0, 1, 2, 3}, r"\[0, 1, 2, 4\] .* got \[0, 1, 2, 3\]; not declared: 3 .*fit brats2023 or msd;"),
        ("brats2023", {0, 4}, r"got \[0, 4\]; not declared: 4 .*fit brats2018;"),
        ("msd", {0, 5, -1, 255}, r"got \[-1, 0, 5, 255\]; not declared: -1, 5, 255 .*no known convention has these"),
        ("msd", {0: 9, 5: 2}, r"not declared: 5 \(2 voxels\)"),
        ("msd", set(range(100)), r"got 100 different values; not declared: 4, 5, 6, 7, 8, 9, 10, 11 "),
    ],
)
def test_l1_wrong_values(name: str, found: set[int] | dict[int, int], text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        get_convention(name).check_values(found, case_id="a", path="seg.nii.gz")
    assert (caught.value.code, caught.value.case_id, caught.value.field) == ("label-values", "a", "label")
    assert caught.value.path == "seg.nii.gz"


@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=lambda convention: convention.name)
def test_subsets_are_legal(convention: LabelConvention) -> None:
    convention.check_values({0})
    convention.check_values({0, convention.ed})
    convention.check_values(convention.values)


def test_round_labels() -> None:
    integers = np.array([0, 4], np.uint8)
    assert round_labels(integers) is integers
    assert round_labels(np.array([0.0, 2.9995, 1.0])).tolist() == [0.0, 3.0, 1.0]
    for value in (0.5, 2.99, np.nan, np.inf):
        with pytest.raises(DataError, match="expected integer label values, got 1 fractional voxels such as"):
            round_labels(np.array([0.0, value]))
