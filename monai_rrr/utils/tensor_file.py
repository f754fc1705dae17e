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


"""Files of tensors and plain values that are checked before they are read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.files import atomic_write
from monai_rrr.utils.manifest import manifest_path, read_manifest, verify_file, write_manifest
from monai_rrr.utils.tensor_format import check_weights

__all__ = ["plain", "read_tensors", "write_errors", "write_tensors"]


def write_tensors(path: str | Path, content: Any, about: Mapping[str, Any] | None = None) -> None:
    """Write tensors and plain values, with a manifest beside the file: its name and SHA-256.

    At every moment, also when the process is killed, the file is one that its manifest accepts, with the content before
    or the content after; a file that did not exist before exists once its manifest does. MONAI's ``CheckpointSaver``
    can't be used for this: it writes in place, and ignite's ``Checkpoint`` behind it deletes the old file before it
    writes the new one (ignite 0.5.5, MONAI 1.6.1).

    Args:
        path: where to write.
        content: what :func:`plain` accepts.
        about: further JSON values for the manifest.

    Raises:
        CheckpointError: ``checkpoint-write``, when it can't be written; nothing has changed then.
        TypeError: When the content is something else.
    """
    path = Path(path)
    staged = path.with_name(f"{path.name}.new")
    content = plain(content)
    with write_errors(path):
        try:
            digest = atomic_write(staged, partial(torch.save, content))
            before = _known(path)
            if before:  # until the new file has its name, both contents are right
                write_manifest(path, [*before, digest], about)
            os.replace(staged, path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        # Flushes the folder, too.
        write_manifest(path, [digest], about)


def read_tensors(path: str | Path, *, require_manifest: bool = True) -> Any:
    """Read a file of tensors and plain values onto the CPU, after its SHA-256 was compared.

    Args:
        path: file made by :func:`write_tensors`, or any file of tensors if no manifest is required.
        require_manifest: whether a file without a manifest is refused. A manifest that exists must fit in any case.

    Raises:
        CheckpointError: ``checkpoint-missing``, ``manifest-missing``, ``manifest-unreadable``, ``checkpoint-hash``,
            ``checkpoint-format`` or ``checkpoint-unreadable``. Nothing of the file is interpreted before its hash is
            known to be right, and it is never run as code.
    """
    path = Path(path)
    if require_manifest or manifest_path(path).exists():
        verify_file(path)
    elif not path.is_file():
        raise CheckpointError("checkpoint-missing", "expected a file, there is none", path=path)
    check_weights(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common error for damaged, foreign and forbidden files
        forbidden = "Weights only load failed" in str(error)
        found = "other objects too, or a damaged file" if forbidden else f"{type(error).__name__}: {error}"
        hint = "save the weights alone, torch.save(network.state_dict(), path)"
        message = f"expected a file of tensors, got {found}"
        raise CheckpointError("checkpoint-unreadable", message, path=path, hint=hint) from error


def plain(value: Any, name: str = "content") -> Any:
    """Return dictionaries, lists, tensors and plain values as such and nothing else, on the CPU.

    What training adds to a tensor is dropped: gradient, subclass (a ``MetaTensor`` knows the patient's file name), and
    the rest of the storage of a view.

    Raises:
        TypeError: For any other object, with the keys that lead to it.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().as_subclass(Tensor)
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if value is None:
        return value
    if isinstance(value, np.generic):
        return value.item()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain_key(key, name): plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(f"{name} must be tensors and plain values, got {type(value).__name__}")


def _plain_key(key: Any, name: str) -> str | int:
    if isinstance(key, (str, int)):
        return key
    raise TypeError(f"keys of {name} must be text or whole numbers, got {type(key).__name__}")


def _known(path: Path) -> list[str]:
    if path.is_file():
        with suppress(CheckpointError):
            return list(read_manifest(path)["sha256"])
    return []


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write into a :class:`~monai_rrr.errors.CheckpointError` with the path and the free space."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause).splitlines()[0]
        existing = next(folder for folder in (path.parent, *path.parent.parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        hint = "free or give more space, or another folder; what was saved before is intact"
        message = f"can't be written ({reason}); {free} bytes are free there"
        raise CheckpointError("checkpoint-write", message, path=path, hint=hint) from error
