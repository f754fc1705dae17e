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

"""Results of one case, written all or not at all, beside a record of what they were made with and from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.files import atomic_write, sha256

__all__ = ["INTENDED_USE", "Provenance", "write_results"]

INTENDED_USE = "Research only, not for diagnostic purposes"
_PACKAGES = ("monai-rrr", "monai", "torch", "numpy", "nibabel")


@dataclass(frozen=True)
class Provenance:
    """What results are made with.

    Args:
        weights: checkpoint file; its SHA-256 is recorded when the first result is written. None: no file.
        settings: plain JSON values that the results depend on.
        seed: of the random number generators. None: nothing random takes part.

    Raises:
        TypeError: When the settings are no JSON values.
        CheckpointError: ``checkpoint-missing``, when there is no such file.
    """

    weights: str | Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        json.dumps(self.settings)

    def record(self, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
        """Return the content of the side-car; it holds no time, no path and no text of a file's header.

        Args:
            inputs: modality -> SHA-256 of the file that was read.
            outputs: name -> SHA-256 of the file that was written.
        """
        settings = json.dumps(self.settings, sort_keys=True)
        return {
            "intended_use": INTENDED_USE,
            "weights_sha256": self._weights_sha256,
            "config_sha256": hashlib.sha256(settings.encode()).hexdigest(),
            "settings": json.loads(settings),
            "seed": self.seed,
            "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
            "inputs": dict(inputs),
            "outputs": dict(outputs),
        }

    @cached_property
    def _weights_sha256(self) -> str | None:
        if self.weights is None:
            return None
        try:
            return sha256(self.weights)
        except OSError as error:
            message = f"expected the weights that made the results, got {error.strerror}"
            raise CheckpointError("checkpoint-missing", message, path=self.weights) from error


def write_results(
    folder: str | Path, stem: str, contents: Mapping[str, bytes], provenance: Provenance, inputs: Mapping[str, str]
) -> list[Path]:
    """Write ``<folder>/<stem><ending>`` for every content, then ``<stem>_provenance.json``.

    All files are written beside their place first and take it only when the last one is on the disk: a full disk or
    an error leaves the folder as it was. The side-car comes last and holds the SHA-256 of the others, so that results
    that do not belong to it show.

    Args:
        folder: made when missing.
        stem: of :func:`~monai_rrr.utils.files.safe_name`.
        contents: ending of the name -> bytes.
        provenance: what the results were made with.
        inputs: modality -> SHA-256 of the file that was read.

    Returns:
        The files, the side-car last.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    side_car = f"{stem}_provenance.json"
    staging = Path(tempfile.mkdtemp(prefix=".tmp_", dir=folder))
    try:
        names = {f"{stem}{ending}": content for ending, content in contents.items()}
        outputs = {name: atomic_write(staging / name, content) for name, content in names.items()}
        record = json.dumps(provenance.record(inputs, outputs), indent=2) + "\n"
        atomic_write(staging / side_car, record.encode())
        written = [folder / name for name in (*names, side_car)]
        for path in written:
            os.replace(staging / path.name, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # a folder that holds nothing yet
            folder.rmdir()
    return written
