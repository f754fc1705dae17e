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
"""A data set under other names, so that no name of a patient enters a program, a log or a result."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_rrr.data.tags import Tags, write_tags
from monai_rrr.errors import DataError
from monai_rrr.utils.files import atomic_write

__all__ = ["pseudonymize"]

COLUMNS = ["pseudonym", "case_id"]
NAMES = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "label": "seg"}


def pseudonymize(
    cases: Sequence[Mapping[str, Any]], folder: str | Path, key: str | Path, tags: Mapping[str, Tags] | None = None
) -> list[dict[str, Any]]:
    """Lay out a data set again under random names, and write down which name is whose.

    Errors, logs, caches, TensorBoard, tables and outputs show case ids and paths; of data that is read through the new
    folder they can show nothing else than the pseudonyms. Files are hard links, or copies where the file system has
    none, with their content as it is: free text in a NIfTI header stays in the file. It is never read out, but the
    folder is not fit for giving away. A case that the key has already keeps its pseudonym.

    Args:
        cases: the cases.
        folder: new home of the files, one folder per case, with ``datalist.json`` and, with tags, ``tags.csv``.
        key: table of pseudonym and case id; keep it with the originals. Readable by its owner only. Made, or extended.
        tags: slice tags to write under the new names.

    Returns:
        The cases under their new names.

    Raises:
        DataError: ``pseudonym-key``, when the key can't be read.
        ValueError: When the key lies in the folder.
    """
    folder, key = Path(os.path.abspath(folder)), Path(os.path.abspath(key))
    if key.is_relative_to(folder):
        raise ValueError("expected a key outside the folder, got one inside: it would go where the folder goes")
    names = _read_key(key)
    for case in cases:
        names.setdefault(str(case["case_id"]), f"case_{secrets.token_hex(5)}")
    _write_key(key, names)
    out = []
    for case in cases:
        name = names[str(case["case_id"])]
        new = {**case, "case_id": name, "modalities": {}}
        files = dict(case["modalities"])
        if case.get("label") is not None:
            files["label"] = case["label"]
        for field, path in files.items():
            target = (
                folder / name / f"{name}_{NAMES[field]}{'.nii.gz' if str(path).lower().endswith('.gz') else '.nii'}"
            )
            _link(Path(path), target)
            if field == "label":
                new["label"] = str(target)
            else:
                new["modalities"][field] = str(target)
        out.append(new)
    out.sort(key=lambda case: str(case["case_id"]))
    listed = json.dumps({"training": [_relative(case, folder) for case in out]}, indent=1)
    atomic_write(folder / "datalist.json", listed.encode())
    if tags is not None:
        write_tags(folder / "tags.csv", {names[case_id]: spans for case_id, spans in tags.items() if case_id in names})
    return out


def _relative(case: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    new = {**case, "modalities": {n: os.path.relpath(path, folder) for n, path in case["modalities"].items()}}
    if "label" in case:
        new["label"] = os.path.relpath(case["label"], folder)
    return new


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _read_key(key: Path) -> dict[str, str]:
    if not key.exists():
        return {}
    try:
        rows = list(csv.reader(io.StringIO(key.read_text(encoding="utf-8"), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError("pseudonym-key", f"expected a table, got {error}", path=key) from error
    if not rows or rows[0] != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise DataError("pseudonym-key", f"expected the columns {COLUMNS}", path=key)
    return {case_id: name for name, case_id in rows[1:]}


def _write_key(key: Path, names: Mapping[str, str]) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    writer.writerows([name, case_id] for case_id, name in names.items())
    key.parent.mkdir(parents=True, exist_ok=True)
    if not key.exists():
        os.close(os.open(key, os.O_CREAT | os.O_WRONLY, 0o600))
    atomic_write(key, table.getvalue().encode())
    key.chmod(0o600)
