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

"""Errors about files, configurations and checkpoints: each one names case, field and path, and says what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["RRRError", "DataError", "DatasetError", "ConfigError", "CheckpointError", "TrainingError", "InferenceError"]


class RRRError(Exception):
    """Base of all errors that a user's files can cause. Programmer mistakes raise ``ValueError`` or ``TypeError``.

    Args:
        code: stable, kebab-case name of the fault, such as ``"gzip-truncated"``.
        message: what was expected and what came.
        case_id: the case it concerns, if any.
        field: the part of the case, such as a modality, ``"label"`` or ``"affine"``.
        path: the file it concerns, if any.
        hint: what the user can do about it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        case_id: str | None = None,
        field: str | None = None,
        path: str | Path | None = None,
        hint: str | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.case_id = case_id
        self.field = field
        self.path = None if path is None else str(path)
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        where = ", ".join(
            f"{name} {value}"
            for name, value in (("case", self.case_id), ("field", self.field), ("file", self.path))
            if value is not None
        )
        text = f"[{self.code}] " + (f"{where}: " if where else "") + self.message
        return text + (f" Hint: {self.hint}" if self.hint else "")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword arguments do not survive pickling by default: a worker's error would lose its fields.
        return _rebuild, (type(self), self.code, self.message, self.case_id, self.field, self.path, self.hint)

    def as_dict(self) -> dict[str, str | None]:
        """Return the fields as plain JSON values."""
        return {
            "code": self.code,
            "message": self.message,
            "case_id": self.case_id,
            "field": self.field,
            "path": self.path,
            "hint": self.hint,
        }


def _rebuild(
    kind: type[RRRError],
    code: str,
    message: str,
    case_id: str | None,
    field: str | None,
    path: str | None,
    hint: str | None,
) -> RRRError:
    return kind(code, message, case_id=case_id, field=field, path=path, hint=hint)


class DataError(RRRError):
    """One fault in one file or case."""


class ConfigError(RRRError):
    """A configuration that can't be used."""


class CheckpointError(RRRError):
    """A checkpoint that can't be read or does not fit."""


class TrainingError(RRRError):
    """A training step that must not be taken."""


class InferenceError(RRRError):
    """A prediction that must not be used, or that can't be made."""


class DatasetError(RRRError):
    """All faults of a dataset, found in one pass.

    Args:
        faults: the faults, at least one.
    """

    def __init__(self, faults: Iterable[DataError]) -> None:
        self.faults = tuple(faults)
        if not self.faults:
            raise ValueError("a DatasetError needs at least one fault, got none")
        lines = "".join(f"\n  - {fault}" for fault in self.faults)
        count = len(self.faults)
        super().__init__("dataset-faults", f"{count} fault{'s' if count > 1 else ''} found:{lines}")

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetError, (self.faults,)
