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
"""Whether a file is still the one that was read, as far as the file system can tell."""

from __future__ import annotations

import hashlib
import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

__all__ = ["FileStamp", "source_digest"]

SETTLED_NS = 2_000_000_000


class FileStamp(NamedTuple):
    """What changes when a file is written, replaced or renamed; all but a change of the disk behind its back.

    The time of the last status change (``ctime``) can't be set back by a program, unlike that of the last change of the
    content (``mtime``), which ``cp -p``, ``rsync`` and archives restore. On Windows it is the time of creation.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> FileStamp:
        """Take the stamp of a file, of the target if it is a link.

        Raises:
            OSError: When there is none.
        """
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def settled(self, read_ns: int) -> bool:
        """Tell whether a later write would have changed the stamp, for content that was read at ``read_ns``.

        File systems count time in steps of up to two seconds: a file that is written twice within one step can have
        one stamp with two contents.
        """
        return read_ns - max(self.mtime_ns, self.ctime_ns) > SETTLED_NS


def source_digest(*modules: ModuleType) -> str:
    """Hash the source of modules, so that what they made is made again when their code changes."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()
