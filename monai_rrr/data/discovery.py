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


def find_cases(root: Path) -> tuple[list[dict[str, Any]], list[DataError], list[DataError]]:
    """Find the cases below a folder: one per folder with images, or per name in a folder that holds several.

    A case is named by the common beginning of its image names, or by its folder when there is none. Hidden files
    and names that match no modality are left out; links are followed, but no folder is entered twice.

    Args:
        root: folder of case folders (at most four levels deep), or the folder of one case.

    Returns:
        The cases in the order of their folders; the faults: a modality that two files claim, a folder that can't be
        read; and the notes: what is left out, and cases whose images have different beginnings.
    """
    cases: list[dict[str, Any]] = []
    walk = _Walk(root)
    faults, notes = walk.faults, walk.notes
    for folder, names in walk.found:
        for case_id, fields in _group(folder, names).items():
            for field, paths in fields.items():
                if len(paths) > 1:
                    message = f"expected one file, got {', '.join(path.name for path in paths)}"
                    where: dict[str, Any] = {"case_id": case_id, "field": field, "path": folder}
                    faults.append(DataError("ambiguous-file", message, **where, hint="remove all but one"))
            modalities = {name: str(fields[name][0]) for name in MODALITIES if name in fields}
            case: dict[str, Any] = {"case_id": case_id, "modalities": modalities}
            if "label" in fields:
                case["label"] = str(fields["label"][0])
            cases.append(case)
            beginnings = sorted({(match_name(Path(path).name) or ("",))[0] for path in modalities.values()})
            if len(beginnings) > 1:
                message = f"expected images that begin alike, got {' and '.join(map(repr, beginnings))}"
                hint = "fine if they are of one patient; otherwise one folder per case, or a datalist in JSON"
                notes.append(DataError("mixed-names", message, case_id=case_id, path=folder, hint=hint))
    return cases, faults, notes


class _Walk:
    """Folders with names that match, found without entering a folder twice; and what was left out."""

    def __init__(self, root: Path) -> None:
        self.found: list[tuple[Path, list[str]]] = []
        self.faults: list[DataError] = []
        self.notes: list[DataError] = []
        seen: set[str] = set()
        for folder, subfolders, names in os.walk(root, onerror=self._unreadable, followlinks=True):
            here, real = Path(folder), os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                self._ignore(here, "a folder that was read already under another name")
                continue
            seen.add(real)
            # A folder with the name of an image is no image, but must not vanish: it is found unreadable later.
            images = sorted(name for name in (*names, *subfolders) if match_name(name) is not None)
            self._sort(here, len(here.relative_to(root).parts), subfolders)
            for name in sorted(set(names) - set(images)):
                self._ignore(here / name, _reason(name))
            if images:
                self.found.append((here, images))
        self.found.sort(key=lambda pair: pair[0].parts)

    def _sort(self, here: Path, depth: int, subfolders: list[str]) -> None:
        """Keep the subfolders to enter, in order."""
        for name in sorted(subfolders):
            if name.startswith("."):
                self._ignore(here / name, "a hidden folder")
            elif depth >= MAX_DEPTH:
                self._ignore(here / name, f"a folder more than {MAX_DEPTH} levels deep")
        plain = (name for name in subfolders if not name.startswith(".") and match_name(name) is None)
        subfolders[:] = sorted(name for name in plain if depth < MAX_DEPTH)

    def _ignore(self, path: Path, reason: str) -> None:
        self.notes.append(DataError("ignored", f"expected images and labels by name, left out {reason}", path=path))

    def _unreadable(self, error: OSError) -> None:
        message = f"expected a readable folder, got {error.strerror}"
        self.faults.append(DataError("folder-unreadable", message, path=error.filename))


def _reason(name: str) -> str:
    if name.startswith("."):
        return "a hidden file"
    if name.lower().endswith((".nii", ".nii.gz")):
        return "a NIfTI file whose name says no modality"
    return "a file of another kind"


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
