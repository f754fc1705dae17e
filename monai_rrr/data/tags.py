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

"""Slice tags: the first and last axial slice of each tumor region, as a radiologist can note them down."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from monai_rrr.data.datalist import normal_id
from monai_rrr.data.nifti import locate, read_verified
from monai_rrr.data.tag_rows import COLUMNS, read_rows
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.conventions import LabelConvention, get_convention, round_labels
from monai_rrr.utils.enums import REGIONS
from monai_rrr.utils.files import atomic_write

__all__ = ["Tags", "check_tags", "derive_tags", "read_tags", "slice_labels", "tag_budget", "write_tags"]

_INTEGER = re.compile(r"-?[0-9]{1,6}\Z")

Tags: TypeAlias = dict[str, tuple[int, int] | None]
"""Region to (first, last) slice, or None when the region is absent.

Slices are counted from 0 at the inferior end of the case's own grid in canonical (RAS) orientation; both ends count.
"""


def read_tags(path: str | Path) -> dict[str, Tags]:
    """Read slice tags from a table or a JSON file.

    A table (``.csv``, comma or semicolon) has the header
    ``case_id,WT_first,WT_last,TC_first,TC_last,ET_first,ET_last``; both numbers of an absent region stay blank.
    JSON has the form ``{"case": {"WT": [41, 97], "TC": [50, 60], "ET": null}}``.

    Args:
        path: the file.

    Returns:
        Case id to tags.

    Raises:
        DataError: When the file can't be read, or is no table of tags.
        DatasetError: All rows that are wrong, each with row, case and region.
    """
    rows = read_rows(path)
    tags: dict[str, Tags] = {}
    places: dict[str, str] = {}
    faults: list[DataError] = []
    for place, case_id, spans in rows:
        try:
            if not case_id:
                raise _RowError("case_id", "expected a case id, got nothing")
            known = normal_id(case_id)
            if known in places:
                raise _RowError("case_id", f"expected each case once, also in {places[known]}")
            places[known] = place
            if isinstance(spans, str):
                raise _RowError("tags", spans)
            tags[case_id] = _parse(spans)
        except _RowError as error:
            message = f"{place}: {error.message}"
            faults.append(DataError("tags-row", message, case_id=case_id or None, field=error.field, path=path))
    if faults:
        raise DatasetError(faults)
    return tags


def write_tags(path: str | Path, tags: Mapping[str, Tags]) -> None:
    """Write slice tags as a table (``.csv``) or as JSON (``.json``), whole or not at all.

    Args:
        path: where to write.
        tags: case id to tags.

    Raises:
        DataError: When a case's tags are not legal.
        ValueError: When the suffix is neither ``.csv`` nor ``.json``.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"expected a path that ends in .csv or .json, got {path.name!r}")
    for case_id, spans in tags.items():
        check_tags(spans, case_id=case_id)
    if path.suffix.lower() == ".json":
        lines = [f"  {json.dumps(case)}: {json.dumps({r: spans[r] for r in REGIONS})}" for case, spans in tags.items()]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
    else:
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        for case_id, spans in tags.items():
            writer.writerow([case_id, *(value for region in REGIONS for value in (spans[region] or ("", "")))])
        text = table.getvalue()
    atomic_write(path, text.encode("utf-8"))


def derive_tags(cases: Iterable[Mapping[str, Any]], convention: str | LabelConvention) -> dict[str, Tags]:
    """Read slice tags off voxel masks, for research data that has them; nothing else in training reads a mask.

    Args:
        cases: cases with ``label``.
        convention: label convention of the masks.

    Returns:
        Case id to tags: first and last axial slice (canonical orientation) with a voxel of the region.

    Raises:
        ConfigError: ``label-convention``, when the convention is unknown.
        DatasetError: All cases without a label, or with a damaged or wrong one.
    """
    convention = get_convention(convention)
    tags: dict[str, Tags] = {}
    faults: list[DataError] = []
    for case in cases:
        case_id, path = str(case["case_id"]), case.get("label")
        try:
            if path is None:
                raise DataError("label-missing", "expected a label file, found none")
            if case_id in tags:
                raise DataError("duplicate-case", "expected each case id once, got it twice")
            label = round_labels(read_verified(path).canonical().array)
            slices = [np.unique(label[..., z]) for z in range(label.shape[2])]
            convention.check_values({value for values in slices for value in values.tolist()})
            tags[case_id] = {
                region: _extent([bool(np.isin(values, of).any()) for values in slices])
                for region, of in convention.regions.items()
            }
        except DataError as error:
            faults.append(locate(error, case_id, "label", path))
    if faults:
        raise DatasetError(faults)
    return tags


def _extent(present: Sequence[bool]) -> tuple[int, int] | None:
    found = [index for index, value in enumerate(present) if value]
    return (found[0], found[-1]) if found else None


def check_tags(
    tags: Mapping[str, tuple[int, int] | None], *, slices: int | None = None, case_id: str | None = None
) -> None:
    """Check that tags are complete, ordered, nested, and inside the image.

    Args:
        tags: tags of one case.
        slices: number of axial slices of the case, when known.
        case_id: case to name in the error.

    Raises:
        DataError: ``tags``, with the region, the expected and the actual numbers.
    """
    try:
        _parse(tags)
        for region in REGIONS:
            span = tags[region]
            if span is not None and slices is not None and span[1] >= slices:
                raise _RowError(region, f"expected slices 0 to {slices - 1}, got {region} {span[0]}-{span[1]}")
    except _RowError as error:
        raise DataError("tags", error.message, case_id=case_id, field=error.field) from None


def tag_budget(tags: Mapping[str, Tags]) -> dict[str, float]:
    """Count the integers that somebody had to give: two per region present, none for an absent one.

    Args:
        tags: case id to tags.

    Returns:
        ``cases``, ``integers`` (total) and ``integers_per_case`` (mean, 0 without cases).

    Example:
        >>> tag_budget({"a": {"WT": (4, 9), "TC": (5, 6), "ET": None}, "b": {"WT": None, "TC": None, "ET": None}})
        {'cases': 2, 'integers': 4, 'integers_per_case': 2.0}
    """
    integers = sum(2 for spans in tags.values() for span in spans.values() if span is not None)
    return {"cases": len(tags), "integers": integers, "integers_per_case": integers / max(len(tags), 1)}


def slice_labels(tags: Mapping[str, tuple[int, int] | None], z: Tensor | Sequence[float]) -> Tensor:
    """Look up which regions the tags give at axial positions.

    Args:
        tags: tags of one case.
        z: canonical slice indices, which may lie between slices; slice ``k`` reaches from ``k - 0.5`` to ``k + 0.5``.

    Shape:
        - z: ``D``.
        - output: ``3D`` float32 in the order WT, TC, ET; 1 where ``first - 0.5 <= z <= last + 0.5``, else 0.

    Example:
        >>> slice_labels({"WT": (1, 2), "TC": None, "ET": None}, [0.0, 1.0, 2.4, 3.0]).tolist()
        [[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    positions = torch.as_tensor(z, dtype=torch.float64)
    if positions.ndim != 1:
        raise ValueError(f"expected z of shape D, got {tuple(positions.shape)}")
    out = torch.zeros(len(REGIONS), len(positions), dtype=torch.float32, device=positions.device)
    for row, region in zip(out, REGIONS, strict=True):
        span = tags[region]
        if span is not None:
            row[(positions >= span[0] - 0.5) & (positions <= span[1] + 0.5)] = 1.0
    return out


class _RowError(Exception):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


def _parse(spans: Mapping[str, Any]) -> Tags:
    """Check one case's spans; each is None or a pair of integers, or of their texts."""
    if not isinstance(spans, Mapping):
        raise _RowError("regions", f"expected the regions {', '.join(REGIONS)}, got {spans!r}")
    if set(spans) != set(REGIONS):
        raise _RowError("regions", f"expected the regions {', '.join(REGIONS)}, got {', '.join(map(str, spans))}")
    tags: Tags = {region: _parse_span(region, spans[region]) for region in REGIONS}
    for outer, inner in pairwise(REGIONS):
        around, span = tags[outer], tags[inner]
        if span is not None and (around is None or span[0] < around[0] or span[1] > around[1]):
            got = f"{inner} {span[0]}-{span[1]} and {outer} " + (f"{around[0]}-{around[1]}" if around else "absent")
            raise _RowError(inner, f"expected {inner} inside {outer}, got {got}")
    return tags


def _parse_span(region: str, span: Any) -> tuple[int, int] | None:
    if span is None:
        return None
    if not isinstance(span, (list, tuple)) or len(span) != 2:
        raise _RowError(region, f"expected {region} to be [first, last] or null, got {span!r}")
    try:
        if not all(type(value) is int or (isinstance(value, str) and _INTEGER.match(value)) for value in span):
            raise ValueError
        first, last = int(span[0]), int(span[1])
    except ValueError:
        message = f"expected two integers for {region}_first and {region}_last, got {span[0]!r} and {span[1]!r}"
        raise _RowError(region, message) from None
    if not 0 <= first <= last:
        raise _RowError(region, f"expected 0 <= {region}_first <= {region}_last, got {first} and {last}")
    return first, last
