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

"""From the bytes of a file to the decoded NIfTI bytes: kind of file, gzip checksum and size, limits on memory."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_rrr.errors import DataError

__all__ = ["decode", "read_bytes"]

GZIP_MAGIC = b"\x1f\x8b"
GZIP_WBITS = 31
CHUNK = 1 << 16


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a whole ``.nii`` or ``.nii.gz`` file once.

    Args:
        path: the file.
        max_bytes: refuse longer files.

    Raises:
        DataError: When it is missing, a folder or a device, unreadable, of another suffix, empty or too long.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise DataError("file-suffix", f"expected a name that ends in .nii or .nii.gz, got {path.name!r}")
    try:
        if path.is_dir():
            raise DataError("file-folder", "expected a file, got a folder", hint="give the file inside the folder")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("file-kind", "expected a file with content, got a pipe, a socket or a device")
        if status.st_size > max_bytes:
            raise DataError("file-size", f"expected at most {max_bytes} bytes, got {status.st_size}")
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError:
        if path.is_symlink():
            message, hint = (
                f"expected a file, got a link to {os.readlink(path)}, where there is none",
                "fetch the target",
            )
        else:
            message, hint = "expected a file, found none", "check the name and the data folder"
        raise DataError("file-missing", message, hint=hint) from None
    except OSError as error:
        raise DataError("file-unreadable", f"expected a readable file, got {error.strerror}") from error
    except ValueError as error:
        raise DataError("file-missing", f"expected the name of a file, got one that can't exist: {error}") from None
    if not raw:
        raise DataError("file-empty", "expected a NIfTI file, got 0 bytes", hint="copy or download the file again")
    return raw


def decode(raw: bytes, compressed: bool, header_size: int, plan: Callable[[bytes], int]) -> NDArray[np.uint8]:
    """Return the decoded bytes, after checking that they are exactly those that were written.

    A gzip stream is read to its end, with checksum (CRC32) and size of every member; a plain file has no checksum,
    so only its length can be checked. No more is decoded than the header declares.

    Args:
        raw: content of the file.
        compressed: whether the name ends in ``.gz``.
        header_size: number of bytes that ``plan`` needs.
        plan: gives the expected total number of bytes from the first ``header_size`` bytes, or raises ``DataError``.

    Raises:
        DataError: ``gzip-truncated``, ``gzip-corrupt``, ``gzip-trailing``, ``file-kind`` or ``file-length``.
    """
    _check_kind(raw, compressed)
    if compressed:
        return _inflate(raw, header_size, plan)
    if len(raw) < header_size:
        raise DataError("file-length", f"expected at least {header_size} bytes, got {len(raw)}", hint=_AGAIN)
    expected = plan(raw[:header_size])
    if len(raw) != expected:
        raise DataError("file-length", f"expected {expected} bytes, got {len(raw)}", hint=_AGAIN)
    return np.frombuffer(bytearray(raw), np.uint8)


_AGAIN = "the file is damaged; copy or download it again"


def _check_kind(raw: bytes, compressed: bool) -> None:
    is_gzip, start = raw.startswith(GZIP_MAGIC), raw[:512].lstrip().lower()
    if is_gzip and compressed:
        return
    if is_gzip:
        got, hint = "gzip", "rename it to .nii.gz"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        got, hint = "a web page", "the download failed, perhaps for want of a login; download the file again"
    elif start.startswith(b"version https://git-lfs"):
        got, hint = "a git-LFS pointer", "fetch the content with 'git lfs pull'"
    elif not compressed:
        return
    elif raw[:4] in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):
        got, hint = "uncompressed NIfTI", "rename it to .nii, or compress it"
    else:
        got, hint = "another kind of file", _AGAIN
    raise DataError("file-kind", f"expected {'gzip' if compressed else 'uncompressed NIfTI'}, got {got}", hint=hint)


def _inflate(raw: bytes, header_size: int, plan: Callable[[bytes], int]) -> NDArray[np.uint8]:
    view, position, filled, total = memoryview(raw), 0, 0, header_size
    out, planned = np.empty(header_size, np.uint8), False
    chunk: bytes | memoryview
    engine = zlib.decompressobj(GZIP_WBITS)
    while True:
        chunk = engine.unconsumed_tail
        if not chunk:
            chunk = view[position : position + CHUNK]
            position += len(chunk)
        try:
            piece = engine.decompress(chunk, total - filled + (1 if planned else 0))
        except zlib.error as error:
            reason = str(error).rpartition(": ")[2]
            message = f"expected an intact gzip stream, got '{reason}' after {_progress(filled, total, planned)}"
            raise DataError("gzip-corrupt", message, hint=_AGAIN) from None
        if filled + len(piece) > total:
            raise DataError("file-length", f"expected {total} decoded bytes, got more", hint=_AGAIN)
        out[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
        if not planned and filled == header_size:
            total, planned, start = plan(out.tobytes()), True, out
            out = np.empty(total, np.uint8)
            out[:header_size] = start
        if engine.eof:
            position -= len(engine.unused_data)
            if not view[position:].tobytes().strip(b"\0"):
                break
            if bytes(view[position : position + 2]) != GZIP_MAGIC:
                extra = len(raw) - position
                raise DataError("gzip-trailing", f"expected the end of the file, got {extra} more bytes", hint=_AGAIN)
            engine = zlib.decompressobj(GZIP_WBITS)
        elif not piece and not chunk:
            message = f"expected {total} bytes and their checksum, got {_progress(filled, total, planned)}, no checksum"
            raise DataError("gzip-truncated", message, hint=_AGAIN)
    if not planned or filled != total:
        raise DataError("file-length", f"expected {total} decoded bytes, got {filled}", hint=_AGAIN)
    return out


def _progress(filled: int, total: int, planned: bool) -> str:
    return f"{filled} of {total} bytes" if planned else f"{filled} bytes"
