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

"""Masks for a share of the cases, and batches that mix both kinds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch.utils.data import DataLoader

from monai_rrr.data import MixedBatchSampler

HAS_MASK = [i < 3 for i in range(23)]


def test_every_batch_mixes_and_an_epoch_shows_all() -> None:
    sampler = MixedBatchSampler(HAS_MASK, batch_size=4)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 10
    assert all(sum(HAS_MASK[i] for i in batch) == 2 for batch in batches)
    seen = Counter(i for batch in batches for i in batch)
    assert all(seen[i] == 1 for i in range(3, 23))
    assert max(seen[i] for i in range(3)) - min(seen[i] for i in range(3)) <= 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first, second = MixedBatchSampler(HAS_MASK, 4, seed=1), MixedBatchSampler(HAS_MASK, 4, seed=1)
    epochs = [(first.set_epoch(epoch), list(first))[1] for epoch in range(3)]
    assert epochs[0] != epochs[1]
    assert list(first) == epochs[2], "the epoch is said, not counted"
    second.set_epoch(2)
    assert list(second) == epochs[2]
    assert list(MixedBatchSampler(HAS_MASK, 4, seed=2)) != epochs[0]


def test_processes_share_an_epoch() -> None:
    parts = [list(MixedBatchSampler(HAS_MASK, 4, rank=rank, num_replicas=3)) for rank in range(3)]
    assert {len(part) for part in parts} == {3}
    rest = [i for part in parts for batch in part for i in batch if i >= 3]
    assert len(rest) == len(set(rest)) == 18
    assert all(sum(HAS_MASK[i] for i in batch) == 2 for part in parts for batch in part)


@pytest.mark.parametrize("value", [True, False])
def test_one_kind_only(value: bool) -> None:
    batches = list(MixedBatchSampler([value] * 5, batch_size=2))
    assert len(batches) == 2
    assert len({i for batch in batches for i in batch}) == 4


def test_batches_of_masks_only() -> None:
    batches = list(MixedBatchSampler(HAS_MASK, batch_size=2, masked=2))
    assert batches
    assert all(HAS_MASK[i] for batch in batches for i in batch)


def test_loader() -> None:
    loader = DataLoader(list(range(23)), batch_sampler=MixedBatchSampler(HAS_MASK, 4))
    assert [len(batch) for batch in loader] == [4] * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "got batch_size 0"),
        ({"batch_size": 4, "rank": 2, "num_replicas": 2}, "rank 2 of 2"),
        ({"batch_size": 4, "masked": 5}, r"masked must be in 0..4, got 5"),
        ({"batch_size": 64}, r"enough for a batch of 64 \(32 with a mask\) in each of 1 processes, got 3 items"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedBatchSampler(HAS_MASK, **arguments)
