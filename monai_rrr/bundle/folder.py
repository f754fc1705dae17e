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

"""What a bundle's folder holds besides configurations: code, a logging configuration, weights; and its content hash."""

from __future__ import annotations

import ast
import configparser
import hashlib
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from pathlib import Path

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.files import sha256
from monai_rrr.utils.manifest import WEIGHT_SUFFIXES, manifest_path, verify_manifests
from monai_rrr.utils.tensor_format import check_weights

__all__ = ["code_files", "content_hash", "foreign_links", "logging_faults", "weight_faults"]

_CODE = (*all_suffixes(), ".pyw", ".pyd", ".so", ".dll", ".dylib", ".sh", ".bat", ".exe")
_OUTPUT = "eval"
_LARGEST = 1 << 16
_LOGGERS = ("StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler", "logging.Formatter")
_STREAMS = ("sys.stdout", "sys.stderr")


def content_hash(folder: str | Path) -> str:
    """Return the SHA-256 of everything in a bundle that can change what it does.

    Left out are weights that have a manifest, because they are verified by it and change with every training, their
    manifests, and what runs write into ``eval``, unless it is code.

    Args:
        folder: of the bundle.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     before = content_hash(folder)
        ...     _ = Path(folder, "train.yaml").write_text("a: 1")
        ...     before == content_hash(folder)
        False
    """
    folder = Path(folder)
    code = {path for path, _ in code_files(folder)}
    digest = hashlib.sha256()
    for path in sorted(_files(folder)):
        name = path.relative_to(folder)
        listed = path.suffix.lower() in WEIGHT_SUFFIXES and manifest_path(path).is_file()
        manifest = path.suffix == ".json" and path.stem.lower().endswith(WEIGHT_SUFFIXES)
        if path not in code and (listed or manifest or name.parts[0] == _OUTPUT):
            continue
        digest.update(f"{name.as_posix()}\0{sha256(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def code_files(folder: Path) -> list[tuple[Path, str]]:
    """List files that Python or a shell could run; while a bundle runs, Python looks for modules in its folder."""
    reason = "it is code, and MONAI puts the folder of a bundle on Python's search path"
    return [(path, reason) for path in sorted(_files(folder)) if path.name.lower().endswith(_CODE)]


def foreign_links(folder: Path) -> list[tuple[Path, str]]:
    """List symbolic links that lead out of the folder."""
    root = folder.resolve()
    links = [path for path in sorted(folder.rglob("*")) if path.is_symlink()]
    return [(path, "it is a link out of the bundle") for path in links if not path.resolve().is_relative_to(root)]


def weight_faults(folder: Path) -> list[CheckpointError]:
    """Return an error for each folder whose weights no manifest covers, are other ones, or are no files of tensors."""
    found = []
    for place in sorted({path.parent for path in _files(folder) if path.suffix.lower() in WEIGHT_SUFFIXES}):
        if _OUTPUT in place.relative_to(folder).parts:
            continue
        try:
            verify_manifests(place)
            for path in sorted(path for path in place.iterdir() if path.suffix.lower() in WEIGHT_SUFFIXES):
                check_weights(path)
        except CheckpointError as error:
            found.append(error)
    return found


def logging_faults(path: Path) -> list[tuple[str, str]]:
    """List (section/option, reason) of what a ``logging.conf`` may not hold; Python evaluates its options.

    Only handlers that print, and arguments that are literals or one of the two streams of a terminal.
    """
    parser = configparser.RawConfigParser()
    try:
        if path.stat().st_size > _LARGEST:
            return [("", f"it has more than {_LARGEST} bytes")]
        parser.read_string(path.read_text("utf-8"))
    except (OSError, ValueError, configparser.Error) as error:
        return [("", f"it can't be read: {type(error).__name__}: {error}")]
    found = []
    for section in parser.sections():
        for option, value in parser.items(section):
            if option == "class" and value.strip() and value.strip() not in _LOGGERS:
                found.append((f"{section}/{option}", f"'{value}' is none of {', '.join(_LOGGERS)}"))
            elif option in ("args", "kwargs", "defaults") and not _literal(value):
                found.append((f"{section}/{option}", f"'{value}' is no literal"))
    return found


def _literal(text: str) -> bool:
    try:
        tree = ast.parse(text.strip() or "None", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    plain = (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Load)
    inside = {id(child) for node in ast.walk(tree) if ast.unparse(node) in _STREAMS for child in ast.walk(node)}
    return all(isinstance(node, plain) or id(node) in inside for node in ast.walk(tree))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
