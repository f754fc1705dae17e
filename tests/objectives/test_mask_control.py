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

import pytest
import torch
from torch import Tensor

from monai_rrr.objectives.mask_control import controlled_mask


def masks_of(count: int = 4) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    mask = torch.zeros(count, 2, 1, 16, 16, 8)
    for index in range(count):
        mask[index, 0, :, 3 : 6 + index, 4:7, 2:5] = 1
        mask[index, 1, :, 4:5, 4:6, 2:4] = 1
    brain = torch.zeros(count, 1, 16, 16, 8)
    brain[:, :, 2:14, 2:14, 1:7] = 1
    return mask, torch.ones(count, dtype=torch.bool), brain, {"case_id": list("abcdefg")[:count]}


def test_none_changes_nothing() -> None:
    mask, has, brain, batch = masks_of()
    found, kept = controlled_mask(mask, has, brain, batch, "none")
    assert found is mask
    assert kept is has


def test_inverted_is_the_rest_of_the_brain() -> None:
    mask, has, brain, batch = masks_of()
    found, _ = controlled_mask(mask, has, brain, batch, "inverted")
    assert torch.equal(found + mask * brain[:, None], brain[:, None].expand_as(mask))


def test_shuffled_gives_every_mask_away_and_keeps_the_sizes() -> None:
    mask, has, brain, batch = masks_of()
    has[1] = False
    found, kept = controlled_mask(mask, has, brain, batch, "shuffled")
    assert torch.equal(kept, has)
    rows = [0, 2, 3]
    assert all(not torch.equal(found[row], mask[row]) for row in rows)
    assert sorted(found[rows].flatten(1).sum(1).tolist()) == sorted(mask[rows].flatten(1).sum(1).tolist())
    assert all(any(torch.equal(found[row], mask[other]) for other in rows) for row in rows)


def test_mask_that_is_alone_can_not_be_shuffled() -> None:
    mask, has, brain, batch = masks_of()
    _, kept = controlled_mask(mask, torch.tensor([False, True, False, False]), brain, batch, "shuffled")
    assert not kept.any()
    _, kept = controlled_mask(mask, torch.zeros_like(has), brain, batch, "shuffled")
    assert not kept.any()


def test_random_moves_inside_the_brain_and_keeps_size_and_nesting() -> None:
    mask, has, brain, batch = masks_of(7)
    found, kept = controlled_mask(mask, has, brain, batch, "random", seed=3)
    assert kept is has
    assert torch.equal(found.flatten(2).sum(2), mask.flatten(2).sum(2))
    assert (found[:, 1] <= found[:, 0]).all(), "regions move together"
    overlap = (found * mask)[:, 0].flatten(1).sum(1) / mask[:, 0].flatten(1).sum(1)
    assert overlap.mean() < 0.5
    assert (found * brain[:, None]).sum() > 0.9 * found.sum()
    centers = torch.stack([one[0, 0].nonzero().float().mean(0) for one in found])
    assert centers.std(0).min() > 0.5, "places differ"


def test_random_place_belongs_to_the_case() -> None:
    mask, has, brain, batch = masks_of()
    found, _ = controlled_mask(mask, has, brain, batch, "random")
    turned = {"case_id": batch["case_id"][::-1], "iteration": 9}
    again, _ = controlled_mask(mask.flip(0), has, brain, turned, "random")
    assert torch.equal(again.flip(0), found)
    other, _ = controlled_mask(mask, has, brain, batch, "random", seed=1)
    assert not torch.equal(other, found)
    unnamed, _ = controlled_mask(mask, has, brain, {"iteration": 1}, "random")
    assert unnamed.sum() == mask.sum()


@pytest.mark.parametrize("part", ["mask", "brain"])
def test_random_with_nothing_to_place(part: str) -> None:
    mask, has, brain, batch = masks_of()
    mask, brain = (mask * 0, brain) if part == "mask" else (mask, brain * 0)
    found, _ = controlled_mask(mask, has, brain, batch, "random")
    assert found.sum() == mask.sum()
