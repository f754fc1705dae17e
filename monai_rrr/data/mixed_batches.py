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

"""Batches that mix the few cases with a mask and the many without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from monai_rrr.utils.seeds import step_generator

__all__ = ["MixedBatchSampler"]


class MixedBatchSampler(Sampler[list[int]]):
    """Fills a fixed part of every batch with cases that have a mask; for ``DataLoader(batch_sampler=...)``.

    An epoch shows every case without a mask at most once, in random order, and the cases with a mask as often as it
    takes: all of them once before any of them again. A last batch that would not be full is dropped. With cases of one
    kind only, batches are made of these. The order is a function of seed and epoch alone.

    Args:
        has_mask: for every item of the dataset, whether it has a mask.
        batch_size: items per batch and process.
        masked: items with a mask per batch. Default: half of the batch, at least one.
        seed: random seed.
        rank: of this process.
        num_replicas: number of processes; each gets other batches, all the same number.

    Raises:
        ValueError: When there is not enough for one batch per process, or a number makes no sense.

    Example:
        >>> sampler = MixedBatchSampler([True, True] + [False] * 6, batch_size=4)
        >>> [sum(i < 2 for i in batch) for batch in sampler], len(sampler)
        ([2, 2, 2], 3)
    """

    def __init__(
        self,
        has_mask: Sequence[bool],
        batch_size: int,
        masked: int | None = None,
        seed: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        if batch_size < 1 or num_replicas < 1 or not 0 <= rank < num_replicas:
            raise ValueError(
                f"expected a batch and processes, got batch_size {batch_size}, rank {rank} of {num_replicas}"
            )
        masked = max(1, batch_size // 2) if masked is None else masked
        if not 0 <= masked <= batch_size:
            raise ValueError(f"masked must be in 0..{batch_size}, got {masked}")
        self.with_mask = [i for i, value in enumerate(has_mask) if value]
        self.without = [i for i, value in enumerate(has_mask) if not value]
        if not self.with_mask or not self.without:
            masked = batch_size if self.with_mask else 0
        self.batch_size, self.masked, self.seed = batch_size, masked, seed
        self.rank, self.num_replicas, self.epoch = rank, num_replicas, 0
        pool = self.without if masked < batch_size else self.with_mask
        self.batches = len(pool) // (batch_size - masked if masked < batch_size else batch_size) // num_replicas
        if not self.batches:
            raise ValueError(
                f"expected enough for a batch of {batch_size} ({masked} with a mask) in each of {num_replicas} "
                f"processes, got {len(self.with_mask)} items with a mask and {len(self.without)} without"
            )

    def __len__(self) -> int:
        """Batches per epoch and process."""
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, as :class:`~monai_rrr.data.EpochLoader` does; it stays until told another."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of an epoch, items with a mask first."""
        generator = step_generator(self.seed, self.epoch)
        total = self.batches * self.num_replicas
        rest = self.batch_size - self.masked
        first = _repeated(self.with_mask, total * self.masked, generator)
        second = _repeated(self.without, total * rest, generator)
        for batch in range(self.rank, total, self.num_replicas):
            yield first[batch * self.masked : (batch + 1) * self.masked] + second[batch * rest : (batch + 1) * rest]


def _repeated(items: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
    return drawn[:count]
