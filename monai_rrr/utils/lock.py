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


"""One process at a time per run folder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from ignite import distributed as idist
from monai.utils import optional_import

from monai_rrr.errors import TrainingError

fcntl, _HAS_LOCKS = optional_import("fcntl")  # not on Windows

__all__ = ["RunLock"]

NAME = ".monai_rrr.lock"


class RunLock:
    """Lock on the folders that a run writes, so that a second process can't write them too.

    The lock is the operating system's (``fcntl.lockf``): it ends with the process, however that ends, so a stale lock
    can't exist, and worker processes do not inherit it. The file that it is on stays behind and means nothing by
    itself. Where there is no ``fcntl`` (Windows), nothing is locked.

    Args:
        folders: folders of the run; made when they do not exist.

    Raises:
        TrainingError: From ``acquire``: ``run-folder-locked``, when another process holds one of them;
            ``run-folder``, when a folder can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, RunLock([folder]):
        ...     pass
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.folders = tuple(dict.fromkeys(Path(folder) for folder in folders))
        self._files: list[IO[str]] = []

    def acquire(self) -> None:
        """Take the lock on every folder, or on none, unless it is held; with several processes, the first takes it."""
        if self._files or idist.get_rank() != 0:
            return
        try:
            for folder in self.folders:
                self._files.append(_locked(folder))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go."""
        while self._files:
            self._files.pop().close()

    def __enter__(self) -> RunLock:
        """Acquire."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()


def _locked(folder: Path) -> IO[str]:
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        hint = "give another folder, or make this one writable"
        raise TrainingError("run-folder", f"can't be written: {error.strerror}", path=folder, hint=hint) from error
    if not _HAS_LOCKS:
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = "another process"
        with suppress(ValueError, KeyError), file:
            file.seek(0)
            record = json.loads(file.read())
            owner = f"process {record['pid']} on {record['host']}"
        hint = "wait for it to end, or give this run a folder of its own"
        message = f"expected a folder that no other run writes, it is in use by {owner}"
        raise TrainingError("run-folder-locked", message, path=folder, hint=hint) from error
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
    file.flush()
    return file
