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
"""Checks of a data set as a whole: what no single case can tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from monai_rrr.data.case_check import CaseCheck
from monai_rrr.data.datalist import normal_id
from monai_rrr.data.tags import Tags
from monai_rrr.errors import DataError
from monai_rrr.utils.enums import MODALITIES, REGIONS

__all__ = ["absent_modalities", "check_tag_table", "duplicate_content"]


def duplicate_content(checks: Sequence[CaseCheck]) -> list[DataError]:
    """Find the same voxels under two names: two cases, two modalities, or one label in two cases.

    Labels count only if most cases have one of their own: a synthetic data set may use one label for all.
    """
    labeled = sum("label" in check.fingerprints for check in checks)
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for check in checks:
        for name, digest in check.fingerprints.items():
            places[digest].append((check.case_id, name))
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)
    faults = []
    for group in places.values():
        case_ids = tuple(dict.fromkeys(case_id for case_id, _ in group))
        names = [name for _, name in group]
        if set(names) == {"label"} and 2 * len(group) > labeled:
            continue
        if len({normal_id(case_id) for case_id in case_ids}) > 1:
            shared[case_ids].append(names[0])
        elif len(set(names)) > 1:
            message = f"expected different images, got the same voxels in {' and '.join(names)}"
            faults.append(DataError("duplicate-modality", message, case_id=case_ids[0], field=names[1]))
    for case_ids, names in shared.items():
        message = f"expected different {'labels' if names == ['label'] else 'images'}, got the same voxels"
        message += f" in the cases {' and '.join(case_ids)}"
        hint = "one patient under two ids makes results look better than they are; keep one"
        faults.append(DataError("duplicate-content", message, case_id=case_ids[1], field=", ".join(names), hint=hint))
    return faults


def absent_modalities(cases: Sequence[Mapping[str, Any]], require: Sequence[str]) -> list[DataError]:
    """Note the modalities that only some cases lack, each time, and once those that all cases lack."""
    names = [set(case["modalities"]) if isinstance(case.get("modalities"), Mapping) else set() for case in cases]
    have = set().union(*names)
    notes = [
        DataError(
            "modality-missing",
            f"expected a file for {name} as in other cases, found none",
            case_id=str(case.get("case_id")),
            field=name,
            hint="fine, if this contrast was not acquired",
        )
        for case, own in zip(cases, names, strict=True)
        for name in MODALITIES
        if name in have and name not in own and name not in require
    ]
    nowhere = [name for name in MODALITIES if have and name not in have and name not in require]
    if nowhere:
        message = f"expected {', '.join(MODALITIES)}, found no {' and no '.join(nowhere)} in any of {len(cases)} cases"
        notes.append(DataError("modality-missing", message, field=", ".join(nowhere)))
    return notes


def check_tag_table(
    case_ids: Collection[str], tags: Mapping[str, Tags], allow_absent: Collection[str], partial: bool = False
) -> tuple[list[DataError], list[DataError]]:
    """Compare a table of tags with the list of cases; return faults and notes.

    Args:
        case_ids: of the cases.
        tags: case id to tags.
        allow_absent: regions that no case needs to have.
        partial: a case without tags is a fault only when a row seems to be meant for it, or when no case has tags.
    """
    faults, notes, unused = [], [], sorted(set(tags) - set(case_ids))
    none = tags.keys().isdisjoint(case_ids)
    for case_id in case_ids:
        if case_id not in tags:
            like = [other for other in unused if _mangled(other) == _mangled(case_id)]
            hint = f"the table has {like[0]!r}, as a spreadsheet may write it" if like else "add a row for it"
            message = "expected slice tags, found none"
            if partial and not like and not none:
                continue
            faults.append(DataError("tags-missing", message, case_id=case_id, field="tags", hint=hint))
    for case_id in unused:
        message = "expected tags only of the cases given, got more"
        notes.append(DataError("tags-unused", message, case_id=case_id, field="tags"))
    used = [tags[case_id] for case_id in case_ids if isinstance(tags.get(case_id), Mapping)]
    for region in REGIONS:
        if used and all(spans.get(region) is None for spans in used):
            message = f"expected {region} in at least one of {len(used)} cases, found none; it can't be learned"
            hint = "say so with allow_absent (--allow-absent), if that is meant"
            (notes if region in allow_absent else faults).append(
                DataError("region-absent", message, field=region, hint=hint)
            )
    return faults, notes


def _mangled(case_id: str) -> str:
    """Return an id as a spreadsheet may leave it: without zeros in front, or as a number."""
    text = normal_id(case_id)
    try:
        return f"{float(text):g}"
    except ValueError:
        return text.lstrip("0")
