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

"""Hashes of weights: a manifest beside each file, ``model.pt.json`` for ``model.pt``, says what its content must be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.files import atomic_write, sha256

__all__ = ["WEIGHT_SUFFIXES", "manifest_path", "read_manifest", "verify_file", "verify_manifests", "write_manifest"]

FORMAT = "monai_rrr manifest"
WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx")

_LARGEST = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def manifest_path(path: str | Path) -> Path:
    """Where the manifest of a file is: ``model.pt.json`` beside ``model.pt``."""
    return Path(path).with_name(f"{Path(path).name}.json")


def write_manifest(path: str | Path, digests: str | Sequence[str], about: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of a file.

    Args:
        path: the file, not its manifest.
        digests: SHA-256 of the content, as :func:`monai_rrr.utils.files.atomic_write` returns it; several while a file
            is being replaced, when the old content and the new one are both right.
        about: further JSON values.

    Raises:
        ValueError: When a digest is no SHA-256.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.pt")
        ...     write_manifest(path, atomic_write(path, b"weights"))
        ...     list(verify_manifests(folder))
        ['model.pt']
    """
    accepted = [digests] if isinstance(digests, str) else list(digests)
    for digest in accepted:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"expected a SHA-256 of 64 hexadecimal digits, got {digest!r}")
    manifest = {"format": FORMAT, "file": Path(path).name, "sha256": accepted, **(about or {})}
    atomic_write(manifest_path(path), json.dumps(manifest, indent=1).encode() + b"\n")


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Return the manifest of a file.

    Args:
        path: the file, not its manifest.

    Raises:
        CheckpointError: ``manifest-missing`` or ``manifest-unreadable``.
    """
    place = manifest_path(path)
    try:
        if place.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        manifest: dict[str, Any] = json.loads(place.read_text("utf-8"))
        digests = manifest["sha256"]
        valid = manifest["format"] == FORMAT and manifest["file"] == Path(path).name and isinstance(digests, list)
        valid = valid and bool(digests) and all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in digests)
    except FileNotFoundError:
        hint = "weights from elsewhere have none: say explicitly that none is required (require_manifest false)"
        message = f"expected {place.name} with its SHA-256 beside it, got none"
        raise CheckpointError("manifest-missing", message, path=path, hint=hint) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        message = f"expected the manifest of {Path(path).name}, got another or a damaged file"
        hint = "take the file and its manifest from their source again"
        raise CheckpointError("manifest-unreadable", message, path=place, hint=hint)
    return manifest


def verify_file(path: str | Path) -> str:
    """Compare a file with its manifest, before anything parses it.

    Returns:
        its SHA-256.

    Raises:
        CheckpointError: ``checkpoint-missing``, ``manifest-missing``, ``manifest-unreadable``, or ``checkpoint-hash``
            when its content is another.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("checkpoint-missing", "expected a file of weights, there is none", path=path)
    expected = read_manifest(path)["sha256"]
    found = sha256(path)
    if found not in expected:
        message = f"expected the SHA-256 of its manifest, {expected[-1][:12]}..., got {found[:12]}..."
        hint = "it is damaged or was replaced: restore it from a copy, or make it again"
        raise CheckpointError("checkpoint-hash", message, path=path, hint=hint)
    return found


def verify_manifests(folder: str | Path) -> dict[str, str]:
    """Verify all weights of a folder: each one has a manifest and is unchanged, and each manifest has its file.

    Args:
        folder: such as ``models`` of a bundle. One without weights needs no manifest.

    Returns:
        SHA-256 by file name.

    Raises:
        CheckpointError: As :func:`verify_file`, for the first file that does not fit.
    """
    names = {path.name.removesuffix(".json") for path in Path(folder).glob("*")}
    weights = sorted(name for name in names if name.lower().endswith(WEIGHT_SUFFIXES))
    return {name: verify_file(Path(folder) / name) for name in weights}
