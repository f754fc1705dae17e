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

"""Cases of which each has its own kind of supervision: the manifest says which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_rrr.data.annotations import check_annotations, drawn_by
from monai_rrr.data.datalist import Case, load_datalist
from monai_rrr.data.tags import Tags, check_tags
from monai_rrr.errors import DataError, DatasetError

__all__ = ["load_mixed", "supervision"]


def load_mixed(
    source: str | Path,
    annotators: Sequence[str] | None = None,
    section: str = "training",
    modalities: Sequence[str] | None = None,
    with_labels: bool | None = False,
    tags: Mapping[str, Tags] | None = None,
) -> list[Case]:
    """List the cases of a JSON datalist, each with the supervision it has; no image is opened.

    Beside what :func:`~monai_rrr.data.load_datalist` lists, an entry may have any of:

    - ``tags``: first and last axial slice of each region, such as ``{"WT": [10, 40], "TC": [12, 30], "ET": null}``;
    - ``annotations``: annotator id -> label file, as :func:`~monai_rrr.data.load_annotated` reads it;
    - ``evidence``: ``{"allowed": path, "not_allowed": path}``, one of both or both, see
      :class:`~monai_rrr.data.LoadEvidenced`.

    A case with none of them is an unlabeled one. What a case lacks is absent from it, never None.

    Args:
        source: datalist in JSON, or a folder of cases, which then have tags at most.
        annotators: ids that are expected of the cases that somebody drew, such as those that a network was built for.
            None: any, unchecked, for cases that are not trained on.
        section: section of the datalist.
        modalities: see :func:`~monai_rrr.data.load_datalist`.
        with_labels: see there.
        tags: tags from elsewhere, such as :func:`~monai_rrr.data.read_tags`; they take the place of those of the list.

    Raises:
        DataError: As :func:`~monai_rrr.data.load_datalist`.
        DatasetError: As there, and all cases with wrong tags, and as :func:`~monai_rrr.data.check_annotations` for the
            cases that somebody drew.
    """
    cases = load_datalist(source, modalities, section, with_labels, with_annotations=True)
    faults: list[DataError] = []
    for case in cases:
        if not drawn_by(case):
            case.pop("annotations", None)
        found = (tags or {}).get(str(case["case_id"]), case.get("tags"))
        if found is not None:
            try:
                check_tags(found, case_id=str(case["case_id"]))
            except DataError as error:
                faults.append(error)
                continue
            case["tags"] = {
                region: None if span is None else (int(span[0]), int(span[1])) for region, span in found.items()
            }
    if faults:
        raise DatasetError(faults)
    drawn = [case for case in cases if "annotations" in case]
    if drawn and annotators is not None:
        check_annotations(drawn, annotators)
    return cases


def supervision(cases: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count which supervision cases have.

    Example:
        >>> supervision([{"tags": {}, "annotations": {"a1": "x", "a2": None}}, {"evidence": {"allowed": "y"}}, {}])
        {'cases': 3, 'tags': 1, 'annotations': 1, 'masks': 1, 'evidence': 1, 'unlabeled': 1}
    """
    kinds = ("tags", "annotations", "evidence")
    return {
        "cases": len(cases),
        "tags": sum("tags" in case for case in cases),
        "annotations": sum("annotations" in case for case in cases),
        "masks": sum(len(drawn_by(case)) for case in cases),
        "evidence": sum("evidence" in case for case in cases),
        "unlabeled": sum(not any(kind in case for kind in kinds) for case in cases),
    }
