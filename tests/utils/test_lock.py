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

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from monai_rrr.errors import TrainingError
from monai_rrr.utils.lock import NAME, RunLock


def refused(folder: Path) -> bool:
    """Whether another process can't lock the folder."""

    def attempt() -> None:
        try:
            RunLock([folder]).acquire()
        except TrainingError as error:
            os._exit(7 if error.code == "run-folder-locked" and f"process {os.getppid()} on" in error.message else 8)
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=attempt)
    child.start()
    child.join(30)
    assert child.exitcode in (0, 7)
    return child.exitcode == 7


def test_one_process_at_a_time(tmp_path: Path) -> None:
    lock = RunLock([tmp_path / "a", tmp_path / "b"])
    with lock:
        lock.acquire()
        assert refused(tmp_path / "a")
        assert refused(tmp_path / "b")
    assert not refused(tmp_path / "a")
    assert (tmp_path / "a" / NAME).is_file(), "the file means nothing by itself"


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=lambda: (RunLock([tmp_path]).acquire(), os._exit(1)))
    child.start()
    child.join(30)
    assert child.exitcode == 1
    with RunLock([tmp_path]):
        assert refused(tmp_path)


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    """A worker process that outlives a killed training must not keep the next one out."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def train_and_die() -> None:
        RunLock([tmp_path]).acquire()
        worker = os.fork()
        if worker == 0:
            signal.pause()
        sender.send(worker)
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=train_and_die)
    child.start()
    worker = receiver.recv()
    os.waitpid(child.pid, 0)  # join would wait for the worker, too
    try:
        assert not refused(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_none_is_kept_when_one_can_not_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"\[run-folder\] file .*file: can't be written: File exists Hint: give"):
        RunLock([tmp_path / "a", tmp_path / "file"]).acquire()
    assert not refused(tmp_path / "a")
