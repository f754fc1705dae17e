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

"""From a folder or a JSON file to a list of cases."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from monai_rrr.data.datalist_json import is_msd_folder, read_datalist
from monai_rrr.data.discovery import EXPECTED_NAMES, find_cases
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.enums import MODALITIES

__all__ = ["Case", "Listing", "duplicate_cases", "list_cases", "load_datalist", "normal_id", "relative"]

Case: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """What :func:`list_cases` found.

    Args:
        cases: the cases, sorted by ``case_id``.
        faults: what is wrong with the list or the folder.
        notes: what was left out.
        root: folder that paths in messages are relative to.
    """

    cases: list[Case]
    faults: list[DataError]
    notes: list[DataError]
    root: Path


def load_datalist(
    source: str | Path,
    modalities: Sequence[str] | None = None,
    section: str = "training",
    with_labels: bool | None = None,
    require: Sequence[str] = (),
    with_annotations: bool = False,
) -> list[Case]:
    """List the cases of a data set; no image is opened.

    A case is a plain JSON dictionary: ``case_id``, ``modalities`` (name to path, any subset of t1, t1c, t2, flair),
    ``volumes`` (only for 4-D files: name to index in the fourth dimension), ``label`` (only if there is one),
    ``annotations``, ``evidence`` and ``tags`` (only if asked for).
    The naming found never decides the label convention.

    Args:
        source: folder of BraTS cases (``*_t1ce.nii.gz``, ``*-t1c.nii.gz``, any capitals, ``.nii`` too) or of one case,
            folder of MSD Task01 with its ``dataset.json``, or a datalist in JSON as MONAI's.
        modalities: keep only these. For a JSON datalist that has lists of files or 4-D files and does not say which
            is which, it is required, and gives their order.
        section: section of a JSON datalist, such as ``"training"``.
        with_labels: True demands a label of every case, False leaves labels out, None takes what there is.
        require: modalities that every case must have.
        with_annotations: keep the masks of several annotators, for :func:`~monai_rrr.data.load_annotated`, and marks of
            evidence and tags, for :func:`~monai_rrr.data.load_mixed`.

    Returns:
        The cases, sorted by ``case_id``.

    Raises:
        DataError: When the source can't be read, or holds no case.
        DatasetError: All faults of the cases: missing or ambiguous modalities, missing labels, an id that occurs twice.
        ValueError: When ``modalities`` or ``require`` names an unknown modality.
    """
    found = list_cases(source, modalities, [section], with_labels, require, with_annotations)
    if found.faults:
        raise DatasetError(relative(fault, found.root) for fault in found.faults)
    return found.cases


def list_cases(
    source: str | Path,
    modalities: Sequence[str] | None = None,
    sections: Sequence[str] = ("training",),
    with_labels: bool | None = None,
    require: Sequence[str] = (),
    with_annotations: bool = False,
) -> Listing:
    """List the cases of a data set with all faults, instead of raising them; see :func:`load_datalist`.

    Args:
        source: as there.
        modalities: as there.
        sections: sections of a JSON datalist, whose cases must all be different.
        with_labels: as there.
        require: as there.
        with_annotations: as there.

    Raises:
        DataError: When the source can't be read, or holds no case.
        ValueError: When ``modalities`` or ``require`` names an unknown modality.
    """
    wanted = _check_names("modalities", modalities)
    needed = _check_names("require", require) or ()
    source = Path(os.path.abspath(Path(source).expanduser()))
    if source.is_dir():
        json_file = source / "dataset.json" if is_msd_folder(source) else None
    elif source.is_file() and source.suffix.lower() == ".json":
        json_file = source
    else:
        kind = "a file of another kind" if source.exists() else "nothing"
        raise DataError("source-missing", f"expected a folder or a JSON datalist, got {kind}", path=source)
    if json_file is None:
        cases, faults, notes = find_cases(source)
    else:
        cases, faults, notes = read_datalist(json_file, sections, wanted)
    if not cases and not faults:
        raise DataError(
            "no-cases",
            "expected at least one case, found none",
            path=source,
            hint=f"files are found by their names, ending in .nii or .nii.gz ({EXPECTED_NAMES}; label: *_seg)",
        )
    cases = [_select(case, wanted, with_labels, with_annotations) for case in cases]
    faults += [fault for case in cases for fault in _missing(case, wanted or MODALITIES, needed, with_labels)]
    cases.sort(key=lambda case: str(case["case_id"]))
    faults += duplicate_cases(cases)
    return Listing(cases, faults, notes, source if source.is_dir() else source.parent)


def duplicate_cases(cases: Sequence[Mapping[str, Any]]) -> list[DataError]:
    """Return a fault for every case id that occurs twice; capitals, blanks and forms of Unicode do not count."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for case in cases:
        groups[normal_id(str(case.get("case_id")))].append(case)
    faults = []
    for group in groups.values():
        if len(group) > 1:
            places = [f"{c.get('case_id')!r} in {next(iter(_paths(c)), 'no file')}" for c in group]
            message = f"expected each case id once (capitals do not count), got {' and '.join(places)}"
            faults.append(DataError("duplicate-case", message, case_id=str(group[0].get("case_id")), field="case_id"))
    return faults


def normal_id(case_id: str) -> str:
    """Return what two ids have in common that a file system or a spreadsheet may take for the same."""
    return unicodedata.normalize("NFC", case_id.strip()).casefold()


def relative(fault: DataError, root: str | Path | None) -> DataError:
    """Return the fault with its path relative to ``root``, if it lies inside."""
    if root is None or fault.path is None or "\0" in fault.path:
        return fault
    base, path = os.path.abspath(root), os.path.abspath(fault.path)
    try:
        inside = os.path.commonpath([base, path]) == base
    except ValueError:
        inside = False
    if not inside:
        return fault
    where = {"case_id": fault.case_id, "field": fault.field, "hint": fault.hint}
    return type(fault)(fault.code, fault.message, path=os.path.relpath(path, base), **where)


def _paths(case: Mapping[str, Any]) -> list[Any]:
    modalities = case.get("modalities")
    return list(modalities.values()) if isinstance(modalities, Mapping) else []


def _check_names(argument: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    names = (names,) if isinstance(names, str) else tuple(str(name) for name in names)
    unknown = [name for name in names if name not in MODALITIES]
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"expected {argument} to be different names out of {MODALITIES}, got {names}")
    return names


def _select(case: Case, wanted: Sequence[str] | None, with_labels: bool | None, with_annotations: bool) -> Case:
    keep = [name for name in MODALITIES if name in case["modalities"] and (wanted is None or name in wanted)]
    out: Case = {"case_id": case["case_id"], "modalities": {name: case["modalities"][name] for name in keep}}
    if "volumes" in case:
        out["volumes"] = {name: case["volumes"][name] for name in keep if name in case["volumes"]}
    if "label" in case and with_labels is not False:
        out["label"] = case["label"]
    if with_annotations:
        out.update({key: case[key] for key in ("annotations", "evidence", "tags") if key in case})
    if "split" in case:
        out["split"] = case["split"]
    return out


def _missing(case: Case, wanted: Sequence[str], needed: Sequence[str], with_labels: bool | None) -> list[DataError]:
    case_id, faults = str(case["case_id"]), []
    absent = [name for name in needed if name not in case["modalities"]]
    for name in absent:
        faults.append(
            DataError(
                "modality-missing",
                f"expected a file for {name}, found only {', '.join(case['modalities']) or 'none'}",
                case_id=case_id,
                field=name,
                hint=f"expected names are {EXPECTED_NAMES}",
            )
        )
    if not case["modalities"] and not absent:
        faults.append(
            DataError(
                "modality-missing",
                f"expected at least one of {', '.join(wanted)}, found none",
                case_id=case_id,
                field="modalities",
                hint=f"expected names are {EXPECTED_NAMES}",
            )
        )
    if with_labels and "label" not in case:
        faults.append(DataError("label-missing", "expected a label file, found none", case_id=case_id, field="label"))
    return faults
