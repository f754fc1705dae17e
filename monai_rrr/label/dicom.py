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

"""Four MR series of one DICOM study as one case."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_rrr.data.datalist import Case
from monai_rrr.errors import DataError
from monai_rrr.utils.enums import MODALITIES

__all__ = ["series_modalities", "study_case"]

STUDY, SERIES, DESCRIPTION = "0020000D", "0020000E", "0008103E"
# tried in this order: "T2 FLAIR" is FLAIR, "T1 post contrast" is t1c
_PATTERNS = {
    "flair": r"flair|\bt2[-_ ]?f\b",
    "t1c": r"t1.*(post|contrast|gad|\bgd|[+]c|\bc[+]|\bce\b|(?<=t1)c)|mprage.*(post|gd)",
    "t1": r"\bt1",
    "t2": r"\bt2",
}


def series_modalities(series: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Sort the series of a study by modality, from their descriptions.

    Args:
        series: DICOM JSON, with SeriesInstanceUID and SeriesDescription.

    Returns:
        modality -> series, in the order given.

    Example:
        >>> texts = ["T1", "T1 post contrast", "AX T2 FLAIR", "T2 tse", "DWI"]
        >>> found = series_modalities({SERIES: {"Value": [t]}, DESCRIPTION: {"Value": [t]}} for t in texts)
        >>> found == {"t1": ["T1"], "t1c": ["T1 post contrast"], "flair": ["AX T2 FLAIR"], "t2": ["T2 tse"]}
        True
    """
    found: dict[str, list[str]] = {}
    for one in series:
        text = first_value(one, DESCRIPTION).lower()
        name = next((name for name, pattern in _PATTERNS.items() if re.search(pattern, text)), None)
        if name is not None:
            found.setdefault(name, []).append(first_value(one, SERIES))
    return found


def study_case(study: str, series: Sequence[Mapping[str, Any]], fetch: Callable[[str], Path]) -> Case:
    """Fetch the series of a study and make a case of them; its id is that of the study.

    Any subset of the modalities will do, as everywhere.

    Args:
        study: StudyInstanceUID.
        series: its series, DICOM JSON.
        fetch: from SeriesInstanceUID to a NIfTI file.

    Raises:
        DataError: ``modality-unknown``, when no description says a modality; ``ambiguous-file``, when two series claim
            the same.
    """
    found = series_modalities(series)
    if not found:
        texts = ", ".join(sorted(first_value(one, DESCRIPTION) or "(none)" for one in series)[:8])
        message = f"expected descriptions of series that say T1, T1 post contrast, T2 or FLAIR, got {texts}"
        raise DataError("modality-unknown", message, case_id=study, field="SeriesDescription")
    for name, uids in found.items():
        if len(uids) > 1:
            message = f"expected one series, got {len(uids)}"
            raise DataError("ambiguous-file", message, case_id=study, field=name, hint="rename all but one")
    return {"case_id": study, "modalities": {m: str(fetch(found[m][0])) for m in MODALITIES if m in found}}


def first_value(tags: Mapping[str, Any], tag: str) -> str:
    """Return the first value of a DICOM JSON attribute, or an empty text."""
    return str((tags.get(tag, {}).get("Value") or [""])[0])
