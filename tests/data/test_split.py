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

"""Tests of the cross-validation split."""

from __future__ import annotations

import pytest

from monai_rrr.data import leave_one_fold_out


def test_every_case_is_held_out_once():
    cases = [f"case{i}" for i in range(10)]
    splits = [leave_one_fold_out(cases, 4, fold) for fold in range(4)]
    assert sorted(case for _, held_out in splits for case in held_out) == cases
    for training, held_out in splits:
        assert sorted(training + held_out) == cases
        assert 2 <= len(held_out) <= 3


def test_seed():
    cases = list(range(12))
    assert leave_one_fold_out(cases, 3, 1) == leave_one_fold_out(cases, 3, 1)
    assert leave_one_fold_out(cases, 3, 1, seed=1) != leave_one_fold_out(cases, 3, 1)


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (5, 0), (2, 2), (2, -1)])
def test_exception(folds: int, fold: int):
    with pytest.raises(ValueError, match=f"expected 2 to 4 folds and a fold below that, got {folds} and {fold}"):
        leave_one_fold_out(["a", "b", "c", "d"], folds, fold)
