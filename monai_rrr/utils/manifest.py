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

"""Hashes of weights: a file ``manifest.json`` beside them says what each one must be."""

from __future__ import annotations

import json
import re
from pathlib import Path

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.files import atomic_write, sha256

__all__ = ["MANIFEST", "WEIGHT_SUFFIXES", "verify_file", "verify_manifest", "write_manifest"]

MANIFEST = "manifest.json"
WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx")

_LARGEST = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HINT = "take the file and its manifest from their source again"


def write_manifest(path: str | Path, digest: str) -> None:
    """Enter a file that was just written into the manifest of its folder; entries of files that are gone are dropped.

    Args:
        path: the file, which exists under its final name.
        digest: its SHA-256, as :func:`monai_rrr.utils.files.atomic_write` returns it.

    Raises:
        CheckpointError: ``manifest-unreadable``, when the folder has a damaged manifest: it is not overwritten.
        ValueError: When ``digest`` is no SHA-256.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.pt")
        ...     write_manifest(path, atomic_write(path, b"weights"))
        ...     list(verify_manifest(folder))
        ['model.pt']
    """
    path = Path(path)
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"expected a SHA-256 of 64 hexadecimal digits, got {digest!r}")
    manifest = path.with_name(MANIFEST)
    files = _read(manifest) if manifest.exists() else {}
    files = {name: value for name, value in files.items() if (path.parent / name).exists()} | {path.name: digest}
    atomic_write(manifest, json.dumps({"files": dict(sorted(files.items()))}, indent=2).encode() + b"\n")


def verify_file(path: str | Path) -> None:
    """Compare a file with the manifest of its folder, before anything parses it.

    Raises:
        CheckpointError: ``checkpoint-missing``, ``manifest-missing``, ``manifest-unreadable``, ``manifest-entry`` when
            the manifest does not list the file, ``checkpoint-hash`` when its content is another.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("checkpoint-missing", "expected a file of weights, got none", path=path)
    manifest = path.with_name(MANIFEST)
    if not manifest.is_file():
        message = f"expected a {MANIFEST} with its SHA-256 beside it, got none"
        raise CheckpointError("manifest-missing", message, path=path, hint=_HINT)
    expected = _read(manifest).get(path.name)
    if expected is None:
        raise CheckpointError("manifest-entry", f"expected an entry in {manifest}, got none", path=path, hint=_HINT)
    found = sha256(path)
    if found != expected:
        message = f"expected SHA-256 {expected}, as in {manifest.name}, got {found}"
        raise CheckpointError("checkpoint-hash", message, path=path, hint=_HINT)


def verify_manifest(folder: str | Path) -> dict[str, str]:
    """Verify all weights of a folder: each one is listed, and each one listed is there and unchanged.

    Args:
        folder: such as ``models`` of a bundle. One without weights needs no manifest.

    Returns:
        SHA-256 by file name.

    Raises:
        CheckpointError: As :func:`verify_file`, for the first file that does not fit.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    files = _read(manifest) if manifest.exists() else {}
    present = [path.name for path in folder.glob("*") if path.suffix.lower() in WEIGHT_SUFFIXES]
    for name in sorted({*files, *present}):
        verify_file(folder / name)
    return files


def _read(manifest: Path) -> dict[str, str]:
    """Read a manifest; names are plain file names, so that none leads out of the folder."""
    try:
        if manifest.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        content = json.loads(manifest.read_text("utf-8"))
        files = content["files"]
        for name, digest in files.items():
            if name != Path(name).name or "\\" in name or not name or not _DIGEST.fullmatch(digest):
                raise ValueError(f"entry {name!r}: {digest!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f'expected {{"files": {{name: SHA-256}}}}, got {type(error).__name__}: {error}'
        raise CheckpointError("manifest-unreadable", message, path=manifest, hint=_HINT) from error
    return dict(files)
