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

"""Rows of slice tags in a table or a JSON file, before their content is checked."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, TypeAlias

from monai_rrr.errors import DataError
from monai_rrr.utils.enums import REGIONS

__all__ = ["COLUMNS", "read_rows"]

COLUMNS = ("case_id", *(f"{region}_{end}" for region in REGIONS for end in ("first", "last")))


Row: TypeAlias = tuple[str, str, dict[str, Any] | str]
"""Place (such as ``"row 2"``), case id, and the raw span of each region or what is wrong with the row."""


def read_rows(path: str | Path) -> list[Row]:
    """Return all rows.

    Raises:
        DataError: When the file can't be read, or is no table of tags.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".json"):
        raise DataError("tags-format", f"expected a .csv or .json file, got {path.name!r}", field="tags", path=path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        message = f"expected a readable file, got {error.strerror}"
        raise DataError("file-unreadable", message, field="tags", path=path) from error
    except UnicodeDecodeError as error:
        raise DataError("tags-format", f"expected UTF-8 text, got {error}", field="tags", path=path) from error
    if path.suffix.lower() == ".json":
        return _json_rows(text, path)
    try:
        return _csv_rows(text, path)
    except csv.Error as error:
        raise DataError("tags-format", f"expected a table, got {error}", field="tags", path=path) from error


def _csv_rows(text: str, path: Path) -> list[Row]:
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if header.count(";") > header.count(",") else ",")
    names = [name.strip() for name in next(reader, [])]
    if sorted(names) != sorted(COLUMNS):
        raise DataError("tags-format", f"expected the columns {COLUMNS}, got {names}", field="tags", path=path)
    rows: list[Row] = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            case_id = dict(zip(names, cells, strict=False)).get("case_id", "").strip()
            rows.append((f"row {reader.line_num}", case_id, f"expected {len(names)} cells, got {len(cells)}"))
            continue
        row = dict(zip(names, (cell.strip() for cell in cells), strict=True))
        spans = {r: _blank_to_none((row[f"{r}_first"], row[f"{r}_last"])) for r in REGIONS}
        rows.append((f"row {reader.line_num}", row["case_id"], spans))
    return rows


def _blank_to_none(pair: tuple[str, str]) -> tuple[str, str] | None:
    return None if pair == ("", "") else pair


def _json_rows(text: str, path: Path) -> list[Row]:
    try:
        # A list of pairs instead of a dictionary, so that a case that occurs twice is seen.
        content = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError) as error:
        raise DataError("tags-format", f"expected JSON text, got {error}", field="tags", path=path) from error
    if not isinstance(content, list) or not all(isinstance(pair, tuple) for pair in content):
        message = 'expected {"case": {"WT": [first, last], "TC": null, ...}, ...}'
        raise DataError("tags-format", f"{message}, got {type(content).__name__}", field="tags", path=path)
    rows: list[Row] = []
    for number, (case_id, spans) in enumerate(content, start=1):
        if not isinstance(spans, list) or not all(isinstance(pair, tuple) for pair in spans):
            message = f"entry {number}: expected an object of regions, got {spans!r}"
            raise DataError("tags-format", message, case_id=case_id, field="tags", path=path)
        twice = sorted({name for name, _ in spans if [n for n, _ in spans].count(name) > 1})
        rows.append(
            (f"entry {number}", case_id, f"expected each region once, got {twice} twice" if twice else dict(spans))
        )
    return rows
