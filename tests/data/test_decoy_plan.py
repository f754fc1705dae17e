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

import pytest

from monai_rrr.data.decoy_plan import TEST_SETS, TRAINING, DecoySettings, plan_markers, split_patients
from monai_rrr.errors import DataError

LABELS = {f"case{index:02d}": int(index % 2 == 0) for index in range(60)}


def counts(plan: dict[str, dict[str, bool]], name: str, value: int) -> tuple[int, int]:
    carries = [sets[name] for case_id, sets in plan.items() if name in sets and LABELS[case_id] == value]
    return sum(carries), len(carries)


@pytest.mark.parametrize("q", [0.5, 0.8, 1.0])
def test_shares(q: float) -> None:
    plan = plan_markers(LABELS, DecoySettings(q=q, held_out=1 / 3))
    for name in (TRAINING, "iid"):
        total = 20 if name == TRAINING else 10
        assert counts(plan, name, 1) == (round(q * total), total)
        assert counts(plan, name, 0) == (round((1 - q) * total), total)
    assert counts(plan, "removed", 1) == counts(plan, "removed", 0) == (0, 10)
    assert counts(plan, "random", 1) == counts(plan, "random", 0) == (5, 10)
    assert counts(plan, "conflicting", 1) == (10 - round(q * 10), 10)


def test_a_case_is_in_training_or_in_all_test_sets() -> None:
    plan = plan_markers(LABELS, DecoySettings())
    assert {tuple(sets) for sets in plan.values()} == {(TRAINING,), TEST_SETS}
    for sets in plan.values():
        assert TRAINING in sets or sets["conflicting"] is not sets["iid"]


def test_patients_are_split_whole() -> None:
    labels = {f"BraTS-GLI-{patient:05d}-{time:03d}": int(patient < 6) for patient in range(12) for time in range(3)}
    held_out = split_patients(labels, 0.5, seed=1)
    parts = {case_id[:15]: set() for case_id in labels}
    for case_id, part in held_out.items():
        parts[case_id[:15]].add(part)
    assert all(len(part) == 1 for part in parts.values())
    assert sum(part == {True} for part in parts.values()) == 6
    assert sum(part == {True} for name, part in parts.items() if int(name[-5:]) < 6) == 3


def test_seed() -> None:
    assert plan_markers(LABELS, DecoySettings()) == plan_markers(dict(reversed(LABELS.items())), DecoySettings())
    assert plan_markers(LABELS, DecoySettings()) != plan_markers(LABELS, DecoySettings(seed=1))


def test_each_side_gets_a_patient_of_each_class() -> None:
    for held_out in (0.01, 0.99):
        part = split_patients({"a": 0, "b": 0, "c": 1, "d": 1}, held_out, seed=0)
        assert sorted(part.values()) == [False, False, True, True]
    with pytest.raises(DataError, match="expected at least 2 patients of class 0, one to train and one to test, got 1"):
        split_patients({"a": 0, "c": 1, "d": 1}, 0.5, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"marker": "smile"}, "expected a marker of letter, .*, got 'smile'"),
        ({"q": 1.1}, r"q must be in \[0, 1\], got 1.1"),
        ({"region": "NCR"}, "expected a region of WT, TC, ET, got 'NCR'"),
        ({"modalities": ("dwi",)}, "expected modalities of t1, t1c, t2, flair, got dwi"),
        ({"held_out": 1.0}, r"held_out must be in \(0, 1\), got 1.0"),
        ({"strength": 0.0}, "expected strength > 0 and a seed of 32 bits, got 0.0"),
    ],
)
def test_exception(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoySettings(**options)
