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


"""Batches whose order and random states depend on the seed and the position in training, and on nothing else."""

from __future__ import annotations

import itertools
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from monai.data.utils import set_rnd
from torch.utils.data import DataLoader, Dataset, IterableDataset

from monai_rrr.data.loader import CaseLoader, named_errors
from monai_rrr.errors import TrainingError
from monai_rrr.utils.seeds import derive_seed, seed_all

__all__ = ["EpochLoader"]

_KEPT = ("num_workers", "collate_fn", "pin_memory", "worker_init_fn", "multiprocessing_context", "prefetch_factor")
_ORDER, _SAMPLE = 1, 2
Key = tuple[int, int]


class EpochLoader:
    """A data loader that can begin anywhere in training and yields what an uninterrupted training would see there.

    Each call of ``iter`` asks for the number of iterations that are done, and yields the rest of that epoch: the order
    comes from (seed, epoch); what is random in a sample from (seed, epoch, index of the sample, how often it was drawn
    in this epoch before). MONAI's randomizable transforms, and Python's, NumPy's and PyTorch's global states are set
    for each sample, so that the number of workers changes nothing. Skipped batches are not loaded.

    ignite's ``DeterministicEngine`` was the model, but can't be used: it is an ``Engine`` of its own, no part of
    MONAI's ``SupervisedTrainer``; it draws its seed anew in each run; and it sets no state per sample, so that the
    number of workers changes the batches.

    A loader that is no plain ``DataLoader`` over a map-style data set (an iterable, MONAI's ``ThreadDataLoader``, or
    ``batch_size=None``) begins each epoch with states from (seed, epoch), and skips by loading.

    A worker that dies is noticed between two steps: torch raises its error in the middle of whatever the main process
    does, and a state in the middle of a step can't be resumed, so that signal handler is taken away; torch's check
    while it waits for a batch finds the dead worker within five seconds.

    Args:
        loader: what to load from; its batch sampler gives the order.
        seed: of the run.
        position: returns the number of iterations done.
        timeout: seconds to wait for a batch of a worker process before it counts as hanging, where the loader has none.

    Raises:
        TrainingError: ``loader-empty``.
        RRRError: From an iteration: what a transform raised, as :class:`~monai_rrr.data.CaseLoader` raises it.
        ValueError: When the loader has no length.

    Example:
        >>> loader = EpochLoader(DataLoader(range(6), batch_size=2, shuffle=True), seed=0, position=lambda: 0)
        >>> resumed = EpochLoader(DataLoader(range(6), batch_size=2, shuffle=True), seed=0, position=lambda: 2)
        >>> list(loader)[2].tolist() == list(resumed)[0].tolist()
        True
    """

    def __init__(self, loader: Iterable[Any], seed: int, position: Callable[[], int], timeout: float = 600.0) -> None:
        try:
            self.length = len(loader)  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(f"expected a data loader with a length, got {type(loader).__name__}") from error
        if self.length == 0:
            hint = "there are fewer samples than batch_size, or none"
            raise TrainingError("loader-empty", "expected at least one batch per epoch, got none", hint=hint)
        self.seed, self.position = seed, position
        self._skips = _plain(loader)
        self._loader = _seeded(loader, self, timeout) if self._skips else loader
        self._iterator: Any = None

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return self.length

    def __iter__(self) -> Iterator[Any]:
        """Return the batches from the present position to the end of its epoch."""
        epoch, done = divmod(self.position(), self.length)
        seed_all(self.seed, _ORDER, epoch)
        self._iterator = iter(self._loader)
        _leave_dead_workers_to_the_loader()
        return named_errors(itertools.islice(self._iterator, 0 if self._skips else done, None))

    def batches(self, sampler: Iterable[Iterable[int]]) -> Iterator[list[Key]]:
        """Yield (index, seed) of the samples of each batch, from the present position on."""
        epoch, done = divmod(self.position(), self.length)
        seed_all(self.seed, _ORDER, epoch)
        for part in (sampler, getattr(sampler, "sampler", None)):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(derive_seed(self.seed, _ORDER, epoch))
            told = getattr(part, "set_epoch", None)
            if told is not None:
                told(epoch)
        drawn: Counter[int] = Counter()
        for number, batch in enumerate([list(indices) for indices in sampler]):
            keys = []
            for index in batch:
                keys.append((index, derive_seed(self.seed, _SAMPLE, epoch, index, drawn[index])))
                drawn[index] += 1
            if number >= done:
                yield keys

    def close(self) -> None:
        """End the worker processes, hanging ones too."""
        # Waiting for the garbage collector is not enough: a traceback can hold the iterator for long.
        end = getattr(self._iterator, "_shutdown_workers", None)
        if end is not None:
            end()
        self._iterator = None


class _Batches:
    """The batch sampler of the loader inside."""

    def __init__(self, sampler: Any, owner: EpochLoader) -> None:
        self.sampler, self.owner = sampler, owner

    def __iter__(self) -> Iterator[list[Key]]:
        return self.owner.batches(self.sampler)

    def __len__(self) -> int:
        return self.owner.length


class _SeededSamples(Dataset[Any]):
    """The data set, with all random states set before each sample."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> Any:
        index, seed = key
        seed_all(seed)
        set_rnd(self.dataset, seed)
        return self.dataset[index]


def _plain(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ in (DataLoader.__iter__, CaseLoader.__iter__)
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
    )


def _seeded(loader: Any, owner: EpochLoader, timeout: float) -> DataLoader[Any]:
    return DataLoader(
        _SeededSamples(loader.dataset),
        batch_sampler=_Batches(loader.batch_sampler, owner),
        persistent_workers=loader.persistent_workers,
        timeout=(loader.timeout or timeout) if loader.num_workers > 0 else 0,
        **{name: getattr(loader, name) for name in _KEPT},
    )


def _leave_dead_workers_to_the_loader() -> None:
    child = getattr(signal, "SIGCHLD", None)  # there is none on Windows
    if child is None or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(child)
    if getattr(handler, "__module__", None) == "torch.utils.data._utils.signal_handling":
        signal.signal(child, signal.SIG_DFL)
