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

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, ThreadDataLoader
from monai.transforms import Compose, RandGaussianNoised
from torch.utils.data import IterableDataset as TorchIterable
from torch.utils.data import RandomSampler, WeightedRandomSampler

from monai_rrr.data import EpochLoader, MixedBatchSampler
from monai_rrr.errors import TrainingError


class Draws(torch.utils.data.Dataset):
    """Samples that are random by each of the global states."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([float(index), float(torch.rand(())), float(np.random.rand())])  # noqa: NPY002


def drawn(loader: Any, position: int = 0, seed: int = 0) -> list[list[float]]:
    return [row for batch in EpochLoader(loader, seed, lambda: position) for row in batch.flatten(1).tolist()]


def noisy(count: int = 8) -> Dataset:
    transform = Compose([RandGaussianNoised("x", prob=0.7)])
    return Dataset([{"x": torch.zeros(1, 2)} for _ in range(count)], transform)


def values(loader: Any, position: int = 0) -> list[float]:
    return [v for batch in EpochLoader(loader, 0, lambda: position) for v in batch["x"].flatten().tolist()]


def test_the_rest_of_an_epoch_is_that_of_the_whole_one():
    loader = DataLoader(Draws(), batch_size=2, shuffle=True)
    whole = drawn(loader, 4)
    assert len(whole) == 8
    assert sorted(row[0] for row in whole) == list(range(8))
    assert drawn(loader, 6) == whole[4:]
    assert drawn(loader, 0) != whole
    assert drawn(loader, 4, seed=1) != whole
    torch.manual_seed(99)
    assert drawn(loader, 4) == whole


def test_samplers_are_told_the_epoch():
    def loader() -> DataLoader:
        return DataLoader(Draws(), batch_sampler=MixedBatchSampler([True] * 2 + [False] * 6, batch_size=2, masked=1))

    whole = drawn(loader(), 6)
    assert len(whole) == 12
    assert whole != drawn(loader(), 0), "the second epoch has an order of its own"
    assert drawn(loader(), 9) == whole[6:], "a training resumed in mid-epoch goes on in it"


def test_monai_transforms_are_set_for_each_sample():
    whole = values(DataLoader(noisy(), batch_size=2, shuffle=True), 4)
    assert values(DataLoader(noisy(), batch_size=2, shuffle=True), 6) == whole[8:]
    assert len(set(whole)) > 4
    assert values(DataLoader(noisy(), batch_size=2, shuffle=True), 8) != whole


def test_workers_that_persist_know_the_epoch():
    alone = DataLoader(Draws(), batch_size=2, shuffle=True)
    loader = DataLoader(Draws(), batch_size=2, shuffle=True, num_workers=2, persistent_workers=True)
    position = [0]
    epochs = EpochLoader(loader, 0, lambda: position[0])
    for start in (0, 4, 10):
        position[0] = start
        assert [row for batch in epochs for row in batch.tolist()] == drawn(alone, start)
    epochs.close()


def test_a_generator_of_the_user_does_not_carry_over():
    data = Draws()

    def loader() -> DataLoader:
        return DataLoader(data, batch_size=2, sampler=RandomSampler(data, generator=torch.Generator().manual_seed(5)))

    first = loader()
    assert drawn(first, 0) == drawn(loader(), 0)
    assert drawn(first, 4) == drawn(loader(), 4)


def test_a_sample_drawn_twice_is_not_augmented_twice_alike():
    data = noisy(2)
    loader = DataLoader(data, batch_size=2, sampler=WeightedRandomSampler([1.0, 0.0], 16))
    found = values(loader)
    assert len(set(found)) > 10


class Stream(TorchIterable):
    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(6).tolist())

    def __len__(self) -> int:
        return 6


@pytest.mark.parametrize(
    "loader",
    [
        torch.utils.data.DataLoader(Stream(), batch_size=2),
        ThreadDataLoader(Draws(), batch_size=2, shuffle=True, num_workers=0),
        [torch.ones(1) * i for i in range(4)],
    ],
    ids=["iterable", "threads", "list"],
)
def test_other_loaders_skip_by_loading(loader):
    whole = [batch.tolist() for batch in EpochLoader(loader, 0, lambda: 0)]
    assert [batch.tolist() for batch in EpochLoader(loader, 0, lambda: 1)] == whole[1:]


def test_exception():
    with pytest.raises(ValueError, match="expected a data loader with a length, got generator"):
        EpochLoader((i for i in range(3)), 0, lambda: 0)
    with pytest.raises(TrainingError, match=r"\[loader-empty\] expected at least one batch per epoch, got none Hint"):
        EpochLoader([], 0, lambda: 0)
