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

"""Read a datalist in JSON: MONAI's, that of the Medical Segmentation Decathlon, or a list of cases."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_rrr.data.discovery import match_name, modality_of
from monai_rrr.errors import DataError
from monai_rrr.utils.enums import MODALITIES, REGIONS

__all__ = ["is_msd_folder", "read_datalist"]

LEARNING = ("train", "val")
"""How sections begin whose cases must not be tested on."""


def is_msd_folder(folder: Path) -> bool:
    """Tell whether a folder has a ``dataset.json`` that names the modalities, as MSD's has."""
    file = folder / "dataset.json"
    if not file.is_file():
        return False
    content = _load(file)
    return isinstance(content, dict) and "modality" in content


def read_datalist(
    file: Path, sections: Sequence[str], modalities: Sequence[str] | None
) -> tuple[list[dict[str, Any]], list[DataError], list[DataError]]:
    """Read sections of a JSON datalist; relative paths are relative to the JSON file.

    An entry is a case (``case_id`` and ``modalities``), or has ``image``: one path of a 4-D file, or a list with one
    path per modality. Their order comes from the file's ``modality`` map, or else from ``modalities``.

    Args:
        file: the JSON file.
        sections: keys of the lists; a file that is a list itself has no sections.
        modalities: order of the files or volumes, when the file does not give it.

    Returns:
        The cases; the faults: of single entries, each naming the entry's index, and cases that another section has
        too; and a note when files lie outside the folder of the JSON file.

    Raises:
        DataError: When the file is no datalist, or has no such section.
    """
    content = _load(file)
    order = _declared_order(content, file) if isinstance(content, dict) else None
    if order is None and modalities is not None:
        order = tuple(modalities)
    cases: list[dict[str, Any]] = []
    faults: list[DataError] = []
    for section in sections if isinstance(content, dict) else sections[:1]:
        entries = content.get(section) if isinstance(content, dict) else content
        if not isinstance(entries, list):
            lists = (
                [key for key, value in content.items() if isinstance(value, list)] if isinstance(content, dict) else []
            )
            message = f"expected a list under {section!r}, got lists under {lists or 'no key'}"
            raise DataError("datalist-section", message, field=section, path=file)
        for index, entry in enumerate(entries):
            try:
                cases.append(_read_entry(entry, order, file.parent))
            except _EntryError as error:
                faults.append(DataError("datalist-entry", f"{error}", field=f"{section}[{index}]", path=file))
    if isinstance(content, dict):
        faults += _in_two_sections(content, sections, order, file)
    return cases, faults, _outside(cases, file)


def _in_two_sections(
    content: dict[str, Any], sections: Sequence[str], order: tuple[str, ...] | None, file: Path
) -> list[DataError]:
    """Find cases and files of these sections in another one of the same file, when one of both trains or selects.

    Several test sets may hold the same case, such as the four of a decoy cohort.
    """
    places: dict[str, dict[str, str]] = {}
    for section in [key for key, value in content.items() if isinstance(value, list)]:
        for entry in content[section]:
            try:
                case = _read_entry(entry, order or MODALITIES[:1], file.parent)
            except _EntryError:
                continue
            for what in (f"case {case['case_id']}", *map(str, case["modalities"].values())):
                places.setdefault(what, {})[section] = case["case_id"]
    faults: dict[tuple[tuple[str, str], ...], DataError] = {}
    hint = "a case that trains must not test; keep it in one section"
    for what, found in places.items():
        if len(found) > 1 and set(found) & set(sections) and any(name.startswith(LEARNING) for name in found):
            case_id = next(iter(found.values()))
            message = f"expected each case in one section, got it in {' and '.join(found)}"
            message += "" if what.startswith("case ") else f" (file {Path(what).name})"
            faults.setdefault(
                tuple(found.items()),
                DataError("split-overlap", message, case_id=case_id, field="case_id", path=file, hint=hint),
            )
    return list(faults.values())


def _outside(cases: Sequence[dict[str, Any]], file: Path) -> list[DataError]:
    root = str(file.parent) + os.sep
    paths = [path for case in cases for path in (*case["modalities"].values(), case.get("label")) if path]
    outside = [path for path in paths if not path.startswith(root)]
    if not outside:
        return []
    message = f"expected files below the folder of the datalist, got {len(outside)} elsewhere, such as {outside[0]}"
    return [DataError("path-outside", message, field="datalist", path=file, hint="fine if you know where they are")]


class _EntryError(Exception):
    pass


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DataError("datalist-json", f"expected JSON text, got {error}", path=file) from error
    except OSError as error:
        raise DataError("file-unreadable", f"expected a readable file, got {error.strerror}", path=file) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if twice:
        raise ValueError(f"the key {twice[0]!r} twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is not JSON")


def _declared_order(content: dict[str, Any], file: Path) -> tuple[str, ...] | None:
    declared = content.get("modality")
    if declared is None:
        return None
    try:
        names = [declared[str(index)] for index in range(len(declared))]
        order = tuple(modality_of(str(name)) or "" for name in names)
    except (KeyError, TypeError):
        order = ("",)
    if "" in order or len(set(order)) < len(order):
        raise DataError(
            "datalist-modality",
            f'expected a map such as {{"0": "FLAIR", "1": "T1w"}} of different modalities, got {declared!r}',
            field="modality",
            path=file,
        )
    return order


def _read_entry(entry: Any, order: tuple[str, ...] | None, root: Path) -> dict[str, Any]:
    if isinstance(entry, str):
        entry = {"image": entry}
    if not isinstance(entry, dict):
        raise _EntryError(f"expected an object with image or modalities, got {type(entry).__name__}")
    if "modalities" in entry:
        case = _read_case(entry, root)
    elif "image" in entry:
        case = _read_images(entry["image"], order, root)
    else:
        raise _EntryError(f"expected the key image or modalities, got {sorted(map(str, entry))}")
    if "case_id" in entry:
        case["case_id"] = entry["case_id"]
    if not isinstance(case.get("case_id"), str) or not case["case_id"]:
        raise _EntryError(f"expected case_id to be a non-empty text, got {case.get('case_id')!r}")
    if entry.get("label") is not None:
        case["label"] = _path(entry["label"], root, "label")
    if entry.get("annotations") is not None:
        case["annotations"] = _read_annotations(entry["annotations"], root)
    if entry.get("evidence") is not None:
        case["evidence"] = _read_evidence(entry["evidence"], root)
    if entry.get("tags") is not None:
        if not isinstance(entry["tags"], dict):
            raise _EntryError(f"expected tags to map regions to [first, last] or null, got {entry['tags']!r}")
        case["tags"] = entry["tags"]
    if entry.get("split") is not None:
        case["split"] = str(entry["split"])
    return case


def _read_case(entry: dict[str, Any], root: Path) -> dict[str, Any]:
    paths, volumes = entry["modalities"], entry.get("volumes") or {}
    for key, value in (("modalities", paths), ("volumes", volumes)):
        if not isinstance(value, dict) or not set(value) <= set(MODALITIES):
            raise _EntryError(f"expected {key} to map names out of {MODALITIES}, got {value!r}")
    if not all(type(index) is int and index >= 0 and name in paths for name, index in volumes.items()):
        raise _EntryError(f"expected volumes to map names of modalities to indices from 0, got {volumes!r}")
    case = {"modalities": {name: _path(path, root, name) for name, path in paths.items()}}
    return {**case, "volumes": dict(volumes)} if volumes else case


def _read_annotations(found: Any, root: Path) -> dict[str, Any]:
    """Read who drew a case: id -> path, None, or an object with the path and the regions that were drawn."""
    if not isinstance(found, dict):
        raise _EntryError(f"expected annotations to map annotator ids to paths or null, got {found!r}")
    annotations: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            regions = value.get("regions")
            if set(value) != {"path", "regions"} or not isinstance(regions, list) or not regions:
                raise _EntryError(f"expected path and regions of annotator {name}, got {value!r}")
            if not all(region in REGIONS for region in regions):
                raise _EntryError(f"expected regions of annotator {name} out of {REGIONS}, got {regions!r}")
            annotations[name] = {"path": _path(value["path"], root, name), "regions": regions}
        else:
            annotations[name] = None if value is None else _path(value, root, name)
    return annotations


def _read_evidence(found: Any, root: Path) -> dict[str, str]:
    """Read where evidence may lie: paths of what is allowed and of what is not."""
    kinds = ("allowed", "not_allowed")
    if not isinstance(found, dict) or not found or not set(found) <= set(kinds):
        raise _EntryError(f"expected evidence to map some of {kinds} to paths, got {found!r}")
    return {kind: _path(path, root, f"evidence {kind}") for kind, path in found.items()}


def _read_images(image: Any, order: tuple[str, ...] | None, root: Path) -> dict[str, Any]:
    paths = [_path(item, root, "image") for item in (image if isinstance(image, list) else [image])]
    if order is None:
        raise _EntryError("expected modalities to be given as the order of the images, got none")
    if isinstance(image, list) and len(paths) != len(order):
        raise _EntryError(f"expected {len(order)} images ({', '.join(order)}), got {len(paths)}")
    case: dict[str, Any] = {"case_id": _case_id(paths[0])}
    if isinstance(image, list):
        return {**case, "modalities": dict(zip(order, paths, strict=True))}
    case["modalities"] = dict.fromkeys(order, paths[0])
    return {**case, "volumes": {name: index for index, name in enumerate(order)}} if len(order) > 1 else case


def _path(value: Any, root: Path, field: str) -> str:
    if not isinstance(value, str) or not value:
        raise _EntryError(f"expected {field} to be a path, got {value!r}")
    return os.path.abspath(root / value)


def _case_id(path: str) -> str:
    name = Path(path).name
    match = match_name(name)
    if match is None:
        return name.removesuffix(".gz").removesuffix(".nii")
    return match[0] or Path(path).parent.name
