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


"""Run a trainer so that it can be stopped at any time and goes on as if it had not been."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import FrameType
from typing import Any, Protocol

from ignite import distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Trainer

from monai_rrr.data.epoch_loader import EpochLoader
from monai_rrr.errors import CheckpointError, TrainingError
from monai_rrr.utils.seeds import seed_all

__all__ = ["run"]

EXIT_STOPPED = 143
_STEP = 3

logger = logging.getLogger(__name__)


class Checkpointer(Protocol):
    """See :class:`monai_rrr.handlers.TrainingCheckpoint`."""

    def due(self, iteration: int, epoch_ends: bool) -> bool: ...
    def prepare(self, engine: Engine) -> bool: ...
    def restore(self, engine: Engine) -> None: ...
    def save(self, engine: Engine, crash: str | None = None) -> None: ...
    def complete(self) -> None: ...


def run(
    trainer: Trainer,
    seed: int = 0,
    checkpoint: Checkpointer | None = None,
    lock: AbstractContextManager[Any] | None = None,
    loader_timeout: float = 600.0,
) -> None:
    """Run a MONAI trainer, in place of ``trainer.run()``.

    *Reproducible.* Order of the samples, augmentation, and whatever else is random in a step follow from the seed, the
    epoch, the sample and the iteration (:class:`~monai_rrr.data.EpochLoader`). On a CPU, a training that was stopped
    anywhere and resumed ends with the same bits as one that was not, with any number of workers and the same number of
    threads.

    *Interruptible.* SIGTERM, SIGUSR1 and SIGINT (Ctrl-C, or a notebook's stop button) are answered after the present
    iteration; after the last one of an epoch, once its validation is over. A checkpoint is written, and the process
    ends with exit code 143; after SIGINT with ``KeyboardInterrupt``, and calling ``run`` again in the same process goes
    on. A second SIGINT stops at once. Handlers of ``Events.COMPLETED`` run only when training is complete.

    *Never silent.* ignite 0.5.5 does nothing when ``run`` is called after an exception; here that is repaired. An
    error while a batch is loaded leaves a checkpoint to go on from, any other error one marked as crash.

    With several processes all stop at the same iteration, and only the first one writes. Sums of gradients depend on
    the order in which processes finish, so that bits are promised for one process only.

    Args:
        trainer: MONAI trainer; its handlers are attached.
        seed: of everything that is random after the network was made.
        checkpoint: says what is saved and where, and whether to resume; None: nothing is saved.
        lock: held while training, such as :class:`~monai_rrr.utils.lock.RunLock`.
        loader_timeout: seconds without a batch after which a worker process counts as hanging.

    Raises:
        TrainingError: ``loader-worker`` or ``loader-timeout``, when a worker process died or hangs;
            ``other-process``, when the first process could not begin; ``no-progress``; ``uneven-processes``.
        CheckpointError: When a checkpoint can't be written, or resumed from.
        KeyboardInterrupt: After SIGINT.
        SystemExit: With code 143, after SIGTERM or SIGUSR1.
        ValueError: When the trainer's epoch is not one pass over its loader.
    """
    _reset(trainer)
    state, loader = trainer.state, trainer.data_loader
    epochs = EpochLoader(loader, seed, lambda: int(state.iteration), loader_timeout)
    if state.epoch_length != len(epochs):
        raise ValueError(f"epoch_length must be the {len(epochs)} batches of the loader, got {state.epoch_length}")
    with ExitStack() as stack:
        signals = stack.enter_context(_Signals())
        complete = _first_process_first(lambda: _begin(trainer, checkpoint, lock, stack))
        _check_processes(state.iteration, len(epochs))
        stack.callback(_reset, trainer)
        drive = _Drive(trainer, seed, checkpoint, signals)
        for event in _Drive.EVENTS:  # in the last place, after all handlers of the trainer
            stack.enter_context(trainer.add_event_handler(event, drive, event))
        stack.callback(epochs.close)
        stack.callback(setattr, trainer, "data_loader", loader)
        trainer.data_loader = epochs
        before, total = state.iteration, state.max_epochs * state.epoch_length
        if complete or before >= total:
            logger.info("training was complete after iteration %d: nothing is left to do", before)
            trainer.fire_event(Events.STARTED)
            trainer.fire_event(Events.COMPLETED)
        else:
            _run(trainer, drive, checkpoint)
            ended = drive.stopped or state.iteration >= total or trainer.should_terminate
            if not ended or (state.iteration == before and not drive.stopped):
                message = f"expected {total} iterations or a handler that ends them, got {state.iteration}"
                hint = "a handler of EXCEPTION_RAISED hides an error, or ignite did nothing"
                raise TrainingError("no-progress", message, hint=hint)
        if drive.stopped:
            _leave(signals.received, state.iteration)
        if checkpoint is not None:
            checkpoint.complete()


class _Drive:
    """What happens between iterations."""

    EVENTS = (
        Events.STARTED,
        Events.GET_BATCH_STARTED,
        Events.ITERATION_STARTED,
        Events.ITERATION_COMPLETED,
        Events.EPOCH_COMPLETED,
    )

    def __init__(self, trainer: Trainer, seed: int, checkpoint: Checkpointer | None, signals: _Signals) -> None:
        self.seed, self.checkpoint, self.signals = seed, checkpoint, signals
        self.done, self.stopped = int(trainer.state.iteration), False
        self.between = False  # nothing is half done: the trainer waits for a batch
        self.scaler = trainer.scaler

    def __call__(self, engine: Trainer, event: Events) -> None:
        state = engine.state
        if event == Events.STARTED:
            # MONAI makes a new scaler in each run.
            if self.scaler is not None and engine.scaler is not None:
                engine.scaler.load_state_dict(self.scaler.state_dict())
            if self.checkpoint is not None:
                self.checkpoint.restore(engine)
        elif event == Events.GET_BATCH_STARTED:
            self.between = True
        elif event == Events.ITERATION_STARTED:
            self.between = False
            seed_all(self.seed, _STEP, state.iteration, idist.get_rank())
        elif event == Events.EPOCH_COMPLETED or state.iteration % state.epoch_length != 0:
            self._between(engine)

    def _between(self, engine: Trainer) -> None:
        iteration = int(engine.state.iteration)
        self.done = iteration
        stop = self.signals.agreed()
        ends = iteration % engine.state.epoch_length == 0
        if self.checkpoint is not None and (stop or self.checkpoint.due(iteration, ends)):
            self.checkpoint.save(engine)
        if stop:
            idist.barrier()  # nobody leaves before the checkpoint is written
            self.stopped = True
            engine.terminate(skip_completed=True)


class _Signals:
    """While entered, signals to stop are noted instead of acted upon. Does nothing outside of the main thread."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
                number = getattr(signal, name, None)  # no SIGUSR1 on Windows
                if number is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self) -> bool:
        """Whether any process was told to stop: if one stopped alone, the others would wait for it."""
        mine = self.received is not None
        return bool(idist.all_reduce(int(mine), "MAX")) if idist.get_world_size() > 1 else mine


def _begin(
    trainer: Trainer, checkpoint: Checkpointer | None, lock: AbstractContextManager[Any] | None, stack: ExitStack
) -> bool:
    if lock is not None:
        stack.enter_context(lock)
    return checkpoint is not None and checkpoint.prepare(trainer)


def _first_process_first(action: Callable[[], bool]) -> bool:
    """Act in the first process, then in the others; raise in all when it fails there, so that none waits for it."""
    first, failure, result = idist.get_rank() == 0, None, False
    if first:
        try:
            result = action()
        except Exception as error:
            failure = error
    alone = idist.get_world_size() == 1
    failed = failure is not None if alone else bool(idist.all_reduce(int(failure is not None), "MAX"))
    if failure is not None:
        raise failure
    if failed:
        raise TrainingError("other-process", "the first process could not begin; its error says why")
    return result if first else action()


def _check_processes(iteration: int, length: int) -> None:
    if idist.get_world_size() == 1:
        return
    for what, number in (("iterations done", iteration), ("batches in an epoch", length)):
        values: Any = idist.all_gather(number)
        if len(set(values)) > 1:
            hint = "all processes must see the same checkpoints and get equally many batches (even_divisible)"
            raise TrainingError("uneven-processes", f"expected one number of {what}, got {values}", hint=hint)


def _run(trainer: Trainer, drive: _Drive, checkpoint: Checkpointer | None) -> None:
    try:
        trainer.run()
    except BaseException as error:
        state = trainer.state
        whole = drive.between and state.iteration == drive.done
        logger.error("training stopped in iteration %d: %s", state.iteration, type(error).__name__)
        if checkpoint is not None and state.iteration > 0 and not isinstance(error, CheckpointError):
            try:
                checkpoint.save(trainer, crash=None if whole else type(error).__name__)
            except Exception as second:  # the first error is the one to report
                logger.error("its state can't be saved: %s", second)
        state.iteration = drive.done
        named = _loader_error(error) if whole else None
        if named is None:
            raise
        # A signal to the whole group ends the workers, too: this process was told to stop, and nothing is lost.
        drive.stopped = drive.signals.received is not None
        if not drive.stopped:
            raise named from error


def _loader_error(error: BaseException) -> TrainingError | None:
    """What an error means that came up while waiting for a worker process."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        hint = "a file system that hangs, or samples that take longer: give a larger loader_timeout"
        return TrainingError("loader-timeout", f"expected a batch in time, got none: {text}", hint=hint)
    died = isinstance(error, RuntimeError) and "DataLoader worker" in text and "exited" in text
    if died or isinstance(error, (ConnectionError, EOFError)):
        hint = "most often memory ran out: fewer num_workers or a smaller batch_size"
        return TrainingError("loader-worker", f"expected all worker processes to live, one ended: {text}", hint=hint)
    return None


def _reset(trainer: Trainer) -> None:
    """Make ignite forget an interrupted run: it would do nothing next (0.5.5), and miscount iterations."""
    trainer._internal_run_generator = None
    trainer._dataloader_iter = None
    trainer._init_iter = None
    trainer.should_terminate = trainer.should_terminate_single_epoch = trainer.should_interrupt = False
    if trainer.state.epoch_length:
        trainer.state.epoch = trainer.state.iteration // trainer.state.epoch_length


def _leave(received: int | None, iteration: int) -> None:
    name = "another process" if received is None else signal.Signals(received).name
    logger.warning("training stopped after iteration %d, asked by %s", iteration, name)
    if received == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_STOPPED)
