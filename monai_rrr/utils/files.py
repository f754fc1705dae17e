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

"""Writing, hashing and naming files."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from monai_rrr.errors import DataError

__all__ = ["atomic_write", "contained", "safe_name", "sha256", "whole_folder"]

MAX_NAME = 160
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def atomic_write(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> str:
    """Write a file so that its name always holds either the old content or the whole new content.

    Temporary file in the same folder, flush to disk, rename, flush of the folder. Missing folders are made. When
    anything fails, the temporary file is removed and the old content stays.

    Args:
        path: where to write.
        content: the bytes, or a function that writes them to the open binary file that it is given.

    Returns:
        SHA-256 of the content as hexadecimal digits.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     digest = atomic_write(Path(folder, "a.txt"), b"text")
        ...     digest == sha256(Path(folder, "a.txt"))
        True
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp_{uuid.uuid4().hex}"
    try:
        with temporary.open("x+b") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = _digest(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return digest


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out`` that becomes ``out`` when all went well, and is deleted otherwise.

    Args:
        out: absolute; absent, or an empty folder.
    """
    work = out.parent / f".tmp_{uuid.uuid4().hex}"
    try:
        yield work
        if out.exists():
            out.rmdir()
        os.replace(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits, without holding the file in memory."""
    with Path(path).open("rb") as file:
        return _digest(file)


def safe_name(case_id: str) -> str:
    """Turn a case id into a file name: injective, without separators, at most 160 bytes, legal on all systems.

    Letters, digits and ``_ . -`` stay as they are, everything else is percent-encoded, so that
    ``urllib.parse.unquote`` gives the id back; only ids that would become too long end in ``~`` and a SHA-256.

    Args:
        case_id: any non-empty text.

    Raises:
        DataError: ``case-id``, when the id is empty.

    Example:
        >>> safe_name("BraTS2021_01476"), safe_name("../x"), safe_name("CON")
        ('BraTS2021_01476', '%2E.%2Fx', '%43ON')
    """
    if not case_id:
        raise DataError("case-id", "expected a non-empty case id, got ''", field="case_id")
    name = quote(case_id, safe="", errors="surrogatepass").replace("~", "%7E")
    if name[0] in ".-" or _RESERVED.match(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if name.endswith("."):
        name = f"{name[:-1]}%2E"
    if len(name) > MAX_NAME:
        digest = hashlib.sha256(case_id.encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{name[: MAX_NAME - len(digest) - 1]}~{digest}"
    return name


def contained(root: str | Path, path: str | Path) -> Path:
    """Return ``path``, taken relative to ``root`` and resolved, if it lies inside ``root``.

    Args:
        root: folder that must hold the path.
        path: relative or absolute path; symbolic links are followed before the check.

    Raises:
        DataError: ``path-outside``, when it lies elsewhere.
    """
    base = Path(root).resolve()
    target = (base / path).resolve()
    if not target.is_relative_to(base):
        raise DataError("path-outside", f"expected a path inside {base}, got {target}", field="path", path=path)
    return target


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    # Windows can't open folders.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
