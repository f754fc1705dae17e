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

"""Cases with the masks of several annotators: who drew what, whether they can be compared, and how much each counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_rrr.data.datalist import Case, load_datalist
from monai_rrr.errors import DataError, DatasetError

__all__ = ["annotator_groups", "annotator_weights", "check_annotations", "drawn_by", "load_annotated"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z")
MAX_WEIGHT = 5.0


def load_annotated(
    source: str | Path,
    annotators: Sequence[str] | None = None,
    section: str = "training",
    modalities: Sequence[str] | None = None,
    with_labels: bool | None = None,
    require: Sequence[str] = (),
) -> list[Case]:
    """List the cases of a JSON datalist whose entries have ``annotations``; no image is opened.

    Beside what :func:`~monai_rrr.data.load_datalist` lists, a case has ``annotations``: annotator id -> path of the
    label file, or None where the annotator didn't draw this case. An annotator who leaves regions out has
    ``{"path": ..., "regions": ["WT"]}`` instead of a path. Ids are pseudonyms: letters, digits, ``_`` and ``-``.

    Args:
        source: datalist in JSON.
        annotators: ids that are expected, such as those that a network was built for. None: those that are found.
        section: section of the datalist.
        modalities: see :func:`~monai_rrr.data.load_datalist`.
        with_labels: see there; ``label`` is the reference for evaluation, if there is one.
        require: see there.

    Raises:
        DataError: As :func:`~monai_rrr.data.load_datalist`.
        DatasetError: As there, and as :func:`check_annotations`.
    """
    cases = load_datalist(source, modalities, section, with_labels, require, with_annotations=True)
    check_annotations(cases, annotators)
    return cases


def drawn_by(case: Mapping[str, Any]) -> list[str]:
    """Return the ids of the annotators who drew a case, sorted."""
    return sorted(name for name, entry in (case.get("annotations") or {}).items() if entry is not None)


def check_annotations(cases: Sequence[Mapping[str, Any]], annotators: Sequence[str] | None = None) -> tuple[str, ...]:
    """Check that the annotators of cases can be told apart from the cases they drew.

    Cases and annotators form a graph, with an edge for every mask. Annotators in different parts of it share no case,
    not even through others: whether one draws larger tumors or saw larger tumors, nothing in the data can tell.

    Args:
        cases: cases with ``annotations``.
        annotators: ids that are expected. None: those that drew something.

    Returns:
        The ids, sorted: the order of ``R`` everywhere.

    Raises:
        DatasetError: All faults: ``annotations-missing`` (a case that nobody drew), ``annotator-id`` (an id that may be
            a name), ``annotator-unknown`` and ``annotator-unused`` (when ``annotators`` are given), and
            ``annotators-disconnected``.

    Example:
        >>> check_annotations([{"case_id": "x", "annotations": {"a2": "x_a2.nii.gz", "a1": "x_a1.nii.gz"}}])
        ('a1', 'a2')
    """
    faults: list[DataError] = []
    drawn = {str(case["case_id"]): drawn_by(case) for case in cases}
    counts = Counter(name for names in drawn.values() for name in names)
    for case_id, names in drawn.items():
        if not names:
            hint = "add one, or leave the case out"
            message = "expected a mask by at least one annotator, found none"
            faults.append(DataError("annotations-missing", message, case_id=case_id, field="annotations", hint=hint))
    for name in sorted({*counts, *(annotators or ())}):
        if not _ID.match(name):
            message = f"expected a pseudonym of up to 32 letters, digits, _ and -, got {name!r}"
            faults.append(DataError("annotator-id", message, field="annotations", hint="ids end up in reports"))
    if annotators is not None:
        for name in sorted(set(counts) - set(annotators)):
            message = f"expected annotators out of {', '.join(sorted(annotators))}, got {name} in {counts[name]} cases"
            faults.append(DataError("annotator-unknown", message, field="annotations"))
        for name in sorted(set(annotators) - set(counts)):
            message = f"expected masks by {name}, found none in {len(drawn)} cases"
            faults.append(DataError("annotator-unused", message, field="annotations"))
    groups = annotator_groups(drawn)
    if len(groups) > 1:
        listed = " | ".join(", ".join(group) for group in groups)
        message = f"expected annotators that are linked by shared cases, got {len(groups)} separate groups: {listed}"
        hint = "let one annotator of each group draw a case of another group, or train the groups apart"
        faults.append(DataError("annotators-disconnected", message, field="annotations", hint=hint))
    if faults:
        raise DatasetError(faults)
    return tuple(sorted(annotators if annotators is not None else counts))


def annotator_groups(drawn: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Find the annotators that are linked by shared cases, directly or through others.

    Args:
        drawn: case id -> ids of those who drew it.

    Returns:
        Groups of ids, each sorted; one group when the graph is connected.

    Example:
        >>> annotator_groups({"x": ["a", "b"], "y": ["b", "c"], "z": ["d"]})
        [['a', 'b', 'c'], ['d']]
    """
    groups: list[set[str]] = []
    for names in drawn.values():
        if names:
            joined = set(names).union(*(group for group in groups if group & set(names)))
            groups = [group for group in groups if not group & set(names)] + [joined]
    return sorted(sorted(group) for group in groups)


def annotator_weights(
    cases: Sequence[Mapping[str, Any]], annotators: Sequence[str], limit: float = MAX_WEIGHT
) -> Tensor:
    r"""Weight of each annotator, so that who drew little isn't drowned by who drew much.

    .. math:: w_r = \min\Big( \frac{n}{R\, n_r},\; 5 \Big)

    with n masks in all, :math:`n_r` of them by annotator r. When all R drew every case, all weights are 1.

    Args:
        cases: cases with ``annotations``.
        annotators: ids, in the order of the weights.
        limit: largest weight.

    Returns:
        ``R`` float32; 0 for an annotator without masks.

    Example:
        >>> cases = [{"annotations": {"a": "x", "b": "y"}}, {"annotations": {"a": "z", "b": None}}]
        >>> annotator_weights(cases, ["a", "b"]).tolist()
        [0.75, 1.5]
    """
    counts = Counter(name for case in cases for name in drawn_by(case))
    total = sum(counts[name] for name in annotators)
    weights = [min(total / (len(annotators) * counts[name]), limit) if counts[name] else 0.0 for name in annotators]
    return torch.tensor(weights, dtype=torch.float32)
