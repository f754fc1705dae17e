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

"""Find the cases of a BraTS-like folder by the names of its files."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from monai_rrr.errors import DataError
from monai_rrr.utils.enums import MODALITIES

__all__ = ["EXPECTED_NAMES", "find_cases", "match_name", "modality_of"]

ALIASES: dict[str, tuple[str, ...]] = {
    "t1": ("t1", "t1n", "t1w"),
    "t1c": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f"),
}
LABEL_ALIASES = ("seg", "segm", "label")
EXPECTED_NAMES = "; ".join(
    f"{modality}: *{' or *'.join(f'_{alias}' for alias in ALIASES[modality])}" for modality in MODALITIES
)
MAX_DEPTH = 4

_FIELD = {alias: field for field, aliases in {**ALIASES, "label": LABEL_ALIASES}.items() for alias in aliases}
_NAME = re.compile(
    rf"^(?:(?P<case>.+?)[_.-])?(?P<alias>{'|'.join(sorted(_FIELD, key=len, reverse=True))})\.nii(?:\.gz)?$",
    re.IGNORECASE,
)


def modality_of(name: str) -> str | None:
    """Return the modality that a name such as ``"T1gd"`` or ``"t2f"`` stands for, or None.

    Example:
        >>> modality_of("T1ce"), modality_of("T1w"), modality_of("DWI")
        ('t1c', 't1', None)
    """
    field = _FIELD.get(name.lower())
    return None if field == "label" else field


def match_name(name: str) -> tuple[str, str] | None:
    """Split a file name into the case's part, which may be empty, and the field; None if it does not match.

    Example:
        >>> match_name("BraTS-GLI-00000-000-t1C.nii.gz")
        ('BraTS-GLI-00000-000', 't1c')
    """
    found = None if name.startswith(".") else _NAME.match(name)
    return None if found is None else (found["case"] or "", _FIELD[found["alias"].lower()])


def find_cases(root: Path) -> tuple[list[dict[str, Any]], list[DataError]]:
    """Find the cases below a folder: one per folder with images, or per name in a folder that holds several.

    A case is named by the common beginning of its image names, or by its folder when there is none. Hidden files
    and names that match no modality are left out; links are followed, but no folder is entered twice.

    Args:
        root: folder of case folders (at most four levels deep), or the folder of one case.

    Returns:
        The cases in the order of their folders, and the faults: a modality that two files claim, a label alone.
    """
    cases: list[dict[str, Any]] = []
    faults: list[DataError] = []
    for folder, names in _folders(root):
        for case_id, fields in _group(folder, names).items():
            for field, paths in fields.items():
                if len(paths) > 1:
                    faults.append(
                        DataError(
                            "ambiguous-file",
                            f"expected one file, got {', '.join(path.name for path in paths)}",
                            case_id=case_id,
                            field=field,
                            path=folder,
                            hint="remove all but one",
                        )
                    )
            modalities = {name: str(fields[name][0]) for name in MODALITIES if name in fields}
            case: dict[str, Any] = {"case_id": case_id, "modalities": modalities}
            if "label" in fields:
                case["label"] = str(fields["label"][0])
            cases.append(case)
    return cases, faults


def _folders(root: Path) -> list[tuple[Path, list[str]]]:
    """List folder and matching file names, without entering a folder twice."""
    found: list[tuple[Path, list[str]]] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        depth = len(Path(folder).relative_to(root).parts)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and depth < MAX_DEPTH)
        matching = sorted(name for name in names if match_name(name) is not None)
        if matching:
            found.append((Path(folder), matching))
    return found


def _group(folder: Path, names: list[str]) -> dict[str, dict[str, list[Path]]]:
    """Sort the files of one folder by case and field."""
    matches = [(name, *match) for name in names if (match := match_name(name)) is not None]
    images = [(prefix, field) for _, prefix, field in matches if field != "label"]
    prefixes = {prefix for prefix, _ in images}
    several = len(prefixes) > 1 and len({field for _, field in images}) < len(images)
    single = next(iter(prefixes)) if len(prefixes) == 1 else ""
    groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for name, prefix, field in matches:
        case_id = prefix if several else single
        groups[case_id or folder.resolve().name][field].append(folder / name)
    return groups
