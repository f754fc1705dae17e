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

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "RRRError",
    "DataError",
    "DatasetError",
    "ConfigError",
    "CheckpointError",
    "TrainingError",
    "InferenceError",
    "named_error",
]

_CARRIER = "monai_rrr error: "


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
        message: str | None = None,
        *,
        case_id: str | None = None,
        field: str | None = None,
        path: str | Path | None = None,
        hint: str | None = None,
    ) -> None:
        if message is None:
            # The loader of torch makes a worker's exception again from nothing but its text.
            fields = next(_carried(code), None)
            if fields is None:
                raise TypeError(f"expected a code and a message, got only {code!r}")
            code, message, case_id, field, path, hint = (fields[name] for name in _FIELDS)
        self.code = code
        self.message = message
        self.case_id = case_id
        self.field = field
        self.path = None if path is None else str(path)
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self._text()
        # In a worker the text carries the fields; nowhere else does a user see them twice.
        return f"{text}\n{_CARRIER}{json.dumps(self._packed())}" if _in_loader_worker() else text

    def _text(self) -> str:
        where = ", ".join(
            f"{name} {_printable(value)}"
            for name, value in (("case", self.case_id), ("field", self.field), ("file", self.path))
            if value is not None
        )
        text = f"[{self.code}] " + (f"{where}: " if where else "") + _printable(self.message, keep="\n")
        return text + (f" Hint: {self.hint}" if self.hint else "")

    def _packed(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.as_dict()}

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

    def __init__(self, faults: Iterable[DataError] | str, /) -> None:
        if isinstance(faults, str):
            faults = [_unpacked(fields) for fields in next(_carried(faults), {}).get("faults", ())]
        self.faults = tuple(faults)
        if not self.faults:
            raise ValueError("a DatasetError needs at least one fault, got none")
        lines = "".join(f"\n  - {fault._text()}" for fault in self.faults)
        count = len(self.faults)
        super().__init__("dataset-faults", f"{count} fault{'s' if count > 1 else ''} found:{lines}")

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetError, (self.faults,)

    def _packed(self) -> dict[str, Any]:
        return {**super()._packed(), "faults": [fault._packed() for fault in self.faults]}


def named_error(error: BaseException) -> RRRError | None:
    """Return the named error that is behind an exception, or None.

    MONAI's ``Compose`` raises ``RuntimeError`` from whatever a transform raises, and the loader of torch hands only the
    text of a worker's exception over.

    Args:
        error: any exception.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, RRRError):
            return link
        link = link.__cause__
    fields = next(_carried(str(error)), None)
    return None if fields is None else _unpacked(fields)


_FIELDS = ("code", "message", "case_id", "field", "path", "hint")


def _carried(text: str) -> Iterator[dict[str, Any]]:
    """Find the fields of errors in a text, the innermost first."""
    for line in text.splitlines():
        if line.startswith(_CARRIER):
            yield json.loads(line.removeprefix(_CARRIER))


def _unpacked(fields: dict[str, Any]) -> Any:
    kinds: list[type[RRRError]] = [RRRError]
    kind: type[Any] = RRRError
    while kinds:
        found = kinds.pop()
        kinds += found.__subclasses__()
        kind = found if found.__name__ == fields["type"] else kind
    if issubclass(kind, DatasetError):
        return kind([_unpacked(fault) for fault in fields["faults"]])
    where = {name: fields[name] for name in ("case_id", "field", "path", "hint")}
    return kind(fields["code"], fields["message"], **where)


def _in_loader_worker() -> bool:
    loading = sys.modules.get("torch.utils.data")
    return loading is not None and loading.get_worker_info() is not None


def _printable(text: str, keep: str = "") -> str:
    """Escape what a terminal would obey or can't show: control characters, marks of direction, broken Unicode."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
