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

"""Which classes are decoded."""

from __future__ import annotations

import pytest
import torch

from monai_rrr.transforms import RandomClassSubset

TAGS = torch.tensor([[0.0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [0, torch.nan, 0, 0, 0, 0]])


def test_present_background_and_one_absent_class() -> None:
    found = RandomClassSubset(background=0)(TAGS, iteration=5)
    assert found.shape == (3, 4)
    assert {0, 1, 4} < set(found[0].tolist())
    assert 0 in found[1].tolist()
    assert {0, 1} < set(found[2].tolist())
    assert all(len(set(row)) == 4 for row in found.tolist())


def test_absent_classes_take_turns() -> None:
    draw = RandomClassSubset(seed=3)
    drawn = {(set(draw(TAGS, iteration)[0].tolist()) - {1, 4}).pop() for iteration in range(40)}
    assert drawn == {0, 2, 3, 5}


def test_a_draw_is_a_function_of_seed_iteration_and_rank() -> None:
    first = RandomClassSubset(seed=1)(TAGS, 7, rank=1)
    assert torch.equal(first, RandomClassSubset(seed=1)(TAGS, 7, rank=1))
    others = [RandomClassSubset(seed=1)(TAGS, n, rank=r) for n in range(6) for r in range(2)]
    assert any(not torch.equal(first, other) for other in others)


def test_all_classes_present_or_wanted() -> None:
    assert sorted(RandomClassSubset()(torch.ones(1, 3))[0].tolist()) == [0, 1, 2]
    assert sorted(RandomClassSubset(absent=9)(torch.zeros(1, 3))[0].tolist()) == [0, 1, 2]
    assert RandomClassSubset(absent=0)(torch.zeros(2, 3)).shape == (2, 0)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="absent must be at least 0, got -1"):
        RandomClassSubset(absent=-1)
    with pytest.raises(ValueError, match=r"class_label of shape B K, got \(3,\)"):
        RandomClassSubset()(torch.zeros(3))
