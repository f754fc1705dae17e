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
"""Facts of cases that were measured before, so that a verified data set is verified again in seconds."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from monai_rrr.data import content, decode, geometry, measure, nifti
from monai_rrr.data.measure import CaseFacts
from monai_rrr.data.stamp import FileStamp, source_digest
from monai_rrr.utils.files import atomic_write, sha256

__all__ = ["VerifiedCache"]

FORMAT = "monai_rrr verified 1"
Files = Mapping[str, Sequence[str]]


class VerifiedCache:
    """One JSON file with two tables: which content a file had, and what was measured in that content.

    The facts of a case are found by the SHA-256 of all its files, so they hold for these very bytes and no others. The
    SHA-256 of a file that has the size, times and inode of the last reading is taken from the table; of any other
    file, it is computed from its bytes. Only cases without a fault in a file are kept. The table knows no names: files
    are found by the hash of their path.

    What a stamp can't see: a disk that loses bits without a write, and a file system that keeps no times. ``rehash``
    reads every byte. A cache that is damaged, of another version or made by other code is not used.

    Args:
        path: the file; need not exist.
        rehash: compute every SHA-256 from the bytes.

    Attributes:
        problem: why an existing file was not used, or why none could be written; None if all is well.
    """

    def __init__(self, path: str | Path, *, rehash: bool = False) -> None:
        self.path = Path(path)
        self.problem: str | None = None
        self._code = source_digest(content, decode, geometry, measure, nifti)
        self._rehash = rehash
        self._lock = threading.Lock()
        self._files: dict[str, dict[str, Any]] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._changed = False
        if self.path.exists():
            self._load()

    def get(self, files: Files, volumes: Mapping[str, Any], max_bytes: int) -> CaseFacts | None:
        """Return the facts of a case if every file has the content they were measured in, else None."""
        if not self._facts:
            return None
        try:
            hashes = {path: self._sha256(path) for path in files}
        except (OSError, ValueError):
            return None
        found = self._facts.get(_key(files, hashes, volumes, max_bytes))
        return None if found is None else CaseFacts.from_json(found)

    def stamps(self, files: Files) -> dict[str, FileStamp]:
        """Return the stamps, to be taken before reading, of files that were not written just now."""
        found, now = {}, time.time_ns()
        for path in files:
            with suppress(OSError, ValueError):
                found[path] = FileStamp.of(path)
        return {path: stamp for path, stamp in found.items() if stamp.settled(now)}

    def put(
        self,
        files: Files,
        volumes: Mapping[str, Any],
        max_bytes: int,
        stamps: Mapping[str, FileStamp],
        facts: CaseFacts,
    ) -> None:
        """Keep the facts of a case without faults."""
        if facts.faults or not files:
            return
        hashes = {path: facts.hashes[names[0]] for path, names in files.items()}
        with self._lock:
            self._facts[_key(files, hashes, volumes, max_bytes)] = json.loads(json.dumps(facts.as_json()))
            for path, digest in hashes.items():
                self._remember(path, stamps.get(path), digest)
            self._changed = True

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if not self._changed:
            return
        body = {"files": self._files, "facts": self._facts}
        whole = {"format": FORMAT, "code": self._code, "sha256": _digest(body), "content": body}
        try:
            atomic_write(self.path, json.dumps(whole).encode())
        except OSError as error:
            self.problem = f"can't be written: {error.strerror or error}"
        self._changed = False

    def _load(self) -> None:
        try:
            whole = json.loads(self.path.read_text(encoding="utf-8"))
            known = whole["format"] == FORMAT and whole["code"] == self._code
            body = whole["content"]
            if known and whole["sha256"] != _digest(body):
                raise ValueError("does not have its own checksum")
            if known:
                self._files, self._facts = body["files"], body["facts"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self.problem = f"is damaged and is not used: {error}"

    def _sha256(self, path: str) -> str:
        name, stamp = _name(path), FileStamp.of(path)
        known = self._files.get(name)
        if known is not None and not self._rehash and known["stamp"] == list(stamp):
            return str(known["sha256"])
        settled = stamp.settled(time.time_ns())
        digest = sha256(path)
        with self._lock:
            self._remember(path, stamp if settled else None, digest)
            self._changed = True
        return digest

    def _remember(self, path: str, stamp: FileStamp | None, digest: str) -> None:
        """Keep the content of a file, if it was not written while it was read, or shortly before."""
        self._files.pop(_name(path), None)
        with suppress(OSError):
            if stamp is not None and FileStamp.of(path) == stamp:
                self._files[_name(path)] = {"stamp": list(stamp), "sha256": digest}


def _name(path: str) -> str:
    return hashlib.sha256(os.path.abspath(path).encode("utf-8", "surrogatepass")).hexdigest()


def _key(files: Files, hashes: Mapping[str, str], volumes: Mapping[str, Any], max_bytes: int) -> str:
    sources = sorted([name, hashes[path], volumes.get(name)] for path, names in files.items() for name in names)
    return hashlib.sha256(json.dumps([sources, max_bytes]).encode()).hexdigest()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
