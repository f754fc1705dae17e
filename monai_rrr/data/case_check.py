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
"""All checks of one case: every file on its own, then the files against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_rrr.data.geometry import MAX_DISPLACEMENT, corner_displacement
from monai_rrr.data.measure import CaseFacts, Grid, LabelFacts, axial_slices, measure_case
from monai_rrr.data.tags import Tags, check_tags
from monai_rrr.data.verified_cache import VerifiedCache
from monai_rrr.errors import DataError
from monai_rrr.utils.conventions import LabelConvention
from monai_rrr.utils.enums import MODALITIES, REGIONS

__all__ = ["CaseCheck", "Rules", "check_case"]

MAX_OUTSIDE = 0.25
MAX_GAP = 0.2
SPACING = (0.2, 7.0)
MIN_SLICES = 24


@dataclass(frozen=True)
class Rules:
    """What a case is held against.

    Args:
        convention: label convention; without one, label files are not read.
        require: modalities that the case must have.
        tag_tolerance: slices by which tags and label may differ at either end of a region.
        max_bytes: refuse files that declare more decoded bytes.
    """

    convention: LabelConvention | None
    require: tuple[str, ...]
    tag_tolerance: int
    max_bytes: int


@dataclass
class CaseCheck:
    """What the checks of one case found.

    Args:
        case_id: the case.
        faults: what makes the case unusable.
        notes: what somebody should know, but is legal.
        hashes: SHA-256 of each file, by field.
        fingerprints: equal for equal voxels, of each modality that has content, and of the label.
        unchanged: number of files that were not decoded, because they are known to be intact.
    """

    case_id: str
    faults: list[DataError] = field(default_factory=list)
    notes: list[DataError] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    unchanged: int = 0

    def fault(self, code: str, message: str, **where: Any) -> None:
        """Add a fault."""
        self.faults.append(DataError(code, message, case_id=self.case_id, **where))

    def note(self, code: str, message: str, **where: Any) -> None:
        """Add a note."""
        self.notes.append(DataError(code, message, case_id=self.case_id, **where))


def check_case(case: Any, tags: Tags | None, rules: Rules, cache: VerifiedCache | None) -> CaseCheck:
    """Check one case; each file is read at most once.

    Args:
        case: the case.
        tags: slice tags of the case, if they are to be checked.
        rules: what is expected.
        cache: facts of cases that were measured before, if they may be used.
    """
    if not isinstance(case, Mapping):
        message = f"expected a mapping with case_id and modalities, got {type(case).__name__}"
        return CaseCheck("?", [DataError("case-format", message)])
    result = CaseCheck(str(case.get("case_id")))
    if not isinstance(case.get("case_id"), str) or not case["case_id"].strip():
        result.fault("case-format", f"expected case_id to be a text, got {case.get('case_id')!r}", field="case_id")
    modalities, volumes = _modalities(result, case)
    for name in rules.require:
        if name not in modalities:
            message = f"expected a file for {name}, found only {', '.join(modalities) or 'none'}"
            result.fault("modality-missing", message, field=name)
    paths = dict(modalities)
    if rules.convention is not None and case.get("label") is not None:
        paths["label"] = str(case["label"])
    files: dict[str, list[str]] = {}
    for name, path in paths.items():
        files.setdefault(path, []).append(name)
    facts = None if cache is None else cache.get(files, volumes, rules.max_bytes)
    if facts is None:
        stamps = {} if cache is None else cache.stamps(files)
        facts = measure_case(result.case_id, files, volumes, rules.max_bytes)
        if cache is not None:
            cache.put(files, volumes, rules.max_bytes, stamps, facts)
    else:
        result.unchanged = len(facts.hashes)
    result.faults += facts.faults
    result.hashes, result.fingerprints = facts.hashes, facts.fingerprints
    _judge(result, facts, paths, tags, rules)
    return result


def _modalities(result: CaseCheck, case: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    modalities, volumes = case.get("modalities"), case.get("volumes") or {}
    if not isinstance(modalities, Mapping) or not modalities:
        message = f"expected modalities to map at least one name to a path, got {modalities!r}"
        result.fault("case-format", message, field="modalities")
        return {}, {}
    if not isinstance(volumes, Mapping) or not all(type(index) is int for index in volumes.values()):
        result.fault("case-format", f"expected volumes to map names to indices, got {volumes!r}", field="volumes")
        volumes = {}
    good = {}
    for name, path in modalities.items():
        if name not in MODALITIES:
            message = f"expected modalities out of {', '.join(MODALITIES)}, got {name!r}"
            result.fault("modality-unknown", message, field="modalities")
        elif not isinstance(path, (str, Path)) or not str(path):
            result.fault("case-format", f"expected a path, got {path!r}", field=name)
        else:
            good[name] = str(path)
    return good, dict(volumes)


def _judge(result: CaseCheck, facts: CaseFacts, paths: Mapping[str, str], tags: Tags | None, rules: Rules) -> None:
    if facts.label is not None and rules.convention is not None:
        _check_label(result, facts.label, rules.convention, paths["label"])
    reference = _check_grids(result, facts.grids, paths)
    if tags is not None:
        _check_tags(result, tags, reference, facts.label, rules)
    for name, gap in facts.gaps.items():
        if gap > MAX_GAP:
            message = f"expected content where the other images have it, got 0 in {gap:.0%} of these voxels"
            hint = "fine for a cut-off field of view; a turned, shifted or half-empty file looks like this too"
            result.note("coverage", message, field=name, path=paths[name], hint=hint)
    _check_scope(result, facts, reference, paths)


def _check_label(result: CaseCheck, label: LabelFacts, convention: LabelConvention, path: str) -> None:
    where: dict[str, Any] = {"field": "label", "path": path}
    try:
        convention.check_values(label.counts, case_id=result.case_id, path=path)
    except DataError as error:
        result.faults.append(error)
    labeled = sum(label.counts.values()) - label.counts[0]
    if not labeled:
        message = "expected tumor in most cases, found no labeled voxel"
        hint = "fine for a control without tumor; otherwise the label file is the wrong one"
        result.note("empty-foreground", message, **where, hint=hint)
    elif label.outside > MAX_OUTSIDE * labeled:
        message = f"expected labels inside the brain, got {label.outside} of {labeled} voxels where every image is 0"
        hint = "a label of another case, or one that was turned or shifted, looks like this"
        result.fault("label-outside", message, **where, hint=hint)


def _check_grids(result: CaseCheck, grids: Sequence[Grid], paths: Mapping[str, str]) -> Grid | None:
    """Compare all files with the grid that most of them share; return that grid."""
    if not grids:
        return None
    reference = max(grids, key=lambda grid: sum(_agree(grid, other) for other in grids))
    other = f"{', '.join(reference.names)} ({Path(paths[reference.names[0]]).name})"
    for grid in grids:
        path, name = paths[grid.names[0]], ", ".join(grid.names)
        if grid.shape != reference.shape:
            message = f"expected the shape {reference.shape} of {other}, got {grid.shape} ({Path(path).name})"
            result.fault("shape-mismatch", message, field=name, path=path)
        elif not _agree(grid, reference) and grid.affine is not None and reference.affine is not None:
            moved = corner_displacement(np.asarray(grid.affine), np.asarray(reference.affine), grid.shape)
            message = f"{name}: expected the position of {other} within {MAX_DISPLACEMENT} mm, got {moved:.4g} mm"
            hint = "register the modalities to each other, or copy the right header"
            result.fault("affine-mismatch", message, field="affine", path=path, hint=hint)
    return reference


def _agree(grid: Grid, other: Grid) -> bool:
    if grid.shape != other.shape or grid.affine is None or other.affine is None:
        return False
    return corner_displacement(np.asarray(grid.affine), np.asarray(other.affine), grid.shape) <= MAX_DISPLACEMENT


def _check_tags(result: CaseCheck, tags: Tags, grid: Grid | None, label: LabelFacts | None, rules: Rules) -> None:
    axial = None if grid is None else axial_slices(grid)
    slices = None if axial is None else axial[1]
    try:
        check_tags(tags, slices=slices, case_id=result.case_id)
    except DataError as error:
        result.faults.append(error)
        return
    if label is None or rules.convention is None or not set(label.counts) - {0} <= set(label.extents):
        return
    for region in REGIONS:
        spans = [label.extents[value] for value in rules.convention.regions[region] if value in label.extents]
        drawn = (min(span[0] for span in spans), max(span[1] for span in spans)) if spans else None
        tagged = tags[region]
        if not _close(tagged, drawn, rules.tag_tolerance):
            message = f"expected the slices of the label, {region} {_text(drawn)}, got the tags {_text(tagged)}"
            hint = "slices count from 0 at the inferior end; tag_tolerance allows for differences between readers"
            if slices is not None and drawn is not None and tagged == (slices - 1 - drawn[1], slices - 1 - drawn[0]):
                hint = "the tags count from the superior end"
            result.fault("tags-label", message, field=region, hint=hint)


def _close(first: tuple[int, int] | None, second: tuple[int, int] | None, tolerance: int) -> bool:
    if first is None or second is None:
        one = first or second
        return one is None or one[1] - one[0] + 1 <= tolerance
    return max(abs(first[0] - second[0]), abs(first[1] - second[1])) <= tolerance


def _text(span: tuple[int, int] | None) -> str:
    return "absent" if span is None else f"{span[0]}-{span[1]}"


def _check_scope(result: CaseCheck, facts: CaseFacts, grid: Grid | None, paths: Mapping[str, str]) -> None:
    """Note what networks of this package were not made for."""
    axial = None if grid is None else axial_slices(grid)
    if grid is not None and axial is not None:
        sizes = np.linalg.norm(np.asarray(grid.affine)[:3, :3], axis=0)
        if not (SPACING[0] <= sizes.min() and sizes.max() <= SPACING[1]):
            message = f"expected voxels of {SPACING[0]} to {SPACING[1]} mm, got {sizes.round(4).tolist()}"
            result.note("scope", message, field="affine", path=paths[grid.names[0]])
        if axial[1] < MIN_SLICES:
            message = f"expected a whole brain in at least {MIN_SLICES} axial slices, got {axial[1]}"
            result.note("scope", message, field=grid.names[0], path=paths[grid.names[0]])
    for name, share in facts.negative.items():
        if share > 0:
            message = f"expected MR magnitudes from 0 upwards, got {share:.1%} negative voxels"
            result.note("scope", message, field=name, path=paths[name], hint="CT, or an image normalized already?")
