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

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_rrr.data.geometry import MAX_DISPLACEMENT, checked_affine, corner_displacement
from monai_rrr.data.nifti import NiftiVolume, locate, read_nifti, select_volume
from monai_rrr.data.tags import Tags, check_tags
from monai_rrr.errors import DataError
from monai_rrr.utils.conventions import LabelConvention, round_labels

__all__ = ["CaseCheck", "check_case"]


@dataclass
class CaseCheck:
    """What the checks of one case found.

    Args:
        case_id: the case.
        faults: what makes the case unusable.
        notes: what somebody should know, but is legal.
        hashes: SHA-256 of each file, by field.
        fingerprints: equal for equal voxels, of each modality that has content.
    """

    case_id: str
    faults: list[DataError] = field(default_factory=list)
    notes: list[DataError] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Grid:
    field: str
    path: str
    shape: tuple[int, ...]
    affine: np.ndarray[Any, Any] | None


def check_case(
    case: Mapping[str, Any],
    convention: LabelConvention | None,
    tags: Tags | None,
    require: Sequence[str],
    max_bytes: int,
) -> CaseCheck:
    """Check one case; each file is read once.

    Args:
        case: the case.
        convention: label convention; needed when the case has a label.
        tags: slice tags of the case, if they are to be checked.
        require: modalities that the case must have.
        max_bytes: refuse files that declare more decoded bytes.
    """
    result = CaseCheck(str(case.get("case_id")))
    modalities = case.get("modalities")
    if not isinstance(modalities, Mapping) or not modalities:
        message = f"expected modalities to map at least one name to a path, got {modalities!r}"
        result.faults.append(DataError("case-format", message, case_id=result.case_id, field="modalities"))
        modalities = {}
    for name in require:
        if name not in modalities:
            message = f"expected a file for {name}, found only {', '.join(modalities) or 'none'}"
            result.faults.append(DataError("modality-missing", message, case_id=result.case_id, field=name))
    grids: list[_Grid] = []
    for path in dict.fromkeys(modalities.values()):
        names = [name for name, other in modalities.items() if other == path]
        volumes = case.get("volumes") or {}
        grids += _check_images(result, str(path), {name: volumes.get(name) for name in names}, max_bytes)
    if case.get("label") is not None and convention is not None:
        grids += _check_label(result, str(case["label"]), convention, max_bytes)
    reference = _check_grids(result, grids)
    if tags is not None:
        _check_tags(result, tags, reference)
    return result


def _read(result: CaseCheck, path: str, names: Sequence[str], max_bytes: int) -> tuple[NiftiVolume, _Grid] | None:
    """Read one file, check bytes, header and affine; faults go to the result."""
    label = ", ".join(names)
    try:
        image = read_nifti(path, max_bytes=max_bytes)
    except DataError as error:
        result.faults.append(locate(error, result.case_id, label, path))
        return None
    result.hashes.update(dict.fromkeys(names, image.sha256))
    affine = None
    try:
        affine = checked_affine(image.header)
        image = replace(image, affine=affine)
    except DataError as error:
        result.faults.append(locate(error, result.case_id, label, path))
    return image, _Grid(label, path, image.array.shape[:3], affine)


def _check_images(result: CaseCheck, path: str, volumes: Mapping[str, int | None], max_bytes: int) -> list[_Grid]:
    read = _read(result, path, list(volumes), max_bytes)
    if read is None:
        return []
    image, grid = read
    for name, volume in volumes.items():
        try:
            array = select_volume(image, volume).array
        except DataError as error:
            result.faults.append(locate(error, result.case_id, name, path))
            continue
        lowest, highest = array.min(), array.max()
        if lowest == highest:
            message = f"expected an image with content, got {lowest} in all voxels"
            hint = "leave the file out; any subset of the modalities is fine"
            result.faults.append(
                DataError("constant-modality", message, case_id=result.case_id, field=name, path=path, hint=hint)
            )
            continue
        result.fingerprints[name] = _fingerprint(array)
    return [grid]


def _fingerprint(array: np.ndarray[Any, Any]) -> str:
    """Hash about 32 voxels along each axis: enough to tell any two scans apart, at 1 % of the cost of all voxels."""
    step = [max(1, size // 32) for size in array.shape]
    sample = np.ascontiguousarray(array[:: step[0], :: step[1], :: step[2]])
    return hashlib.sha256(f"{array.shape}{array.dtype.str}".encode() + sample.tobytes()).hexdigest()


def _check_label(result: CaseCheck, path: str, convention: LabelConvention, max_bytes: int) -> list[_Grid]:
    read = _read(result, path, ["label"], max_bytes)
    if read is None:
        return []
    image, grid = read
    where: dict[str, Any] = {"case_id": result.case_id, "field": "label", "path": path}
    try:
        label = select_volume(image, None).array
        flat = label.ravel(order="K")
        values = round_labels(flat[flat != 0])
        found = dict(zip(*(a.tolist() for a in np.unique(values, return_counts=True)), strict=True))
        counts = {0: label.size - values.size, **{int(value): int(count) for value, count in found.items()}}
        convention.check_values(counts)
        if values.size == 0:
            message = "expected tumor in most cases, found no labeled voxel"
            hint = "fine for a control without tumor; otherwise the label file is the wrong one"
            result.notes.append(DataError("empty-foreground", message, **where, hint=hint))
    except DataError as error:
        result.faults.append(locate(error, result.case_id, "label", path))
    return [grid]


def _check_grids(result: CaseCheck, grids: list[_Grid]) -> _Grid | None:
    """Compare all files with the grid that most of them share; return that grid."""
    if not grids:
        return None
    reference = max(grids, key=lambda grid: sum(_agree(grid, other) for other in grids))
    for grid in grids:
        other = f"{reference.field} ({Path(reference.path).name})"
        where: dict[str, Any] = {"case_id": result.case_id, "path": grid.path}
        if grid.shape != reference.shape:
            message = f"expected the shape {reference.shape} of {other}, got {grid.shape} ({Path(grid.path).name})"
            result.faults.append(DataError("shape-mismatch", message, field=grid.field, **where))
        elif not _agree(grid, reference) and grid.affine is not None and reference.affine is not None:
            moved = corner_displacement(grid.affine, reference.affine, grid.shape)
            message = f"{grid.field}: expected the position of {other} within {MAX_DISPLACEMENT} mm, got {moved:.4g} mm"
            hint = "register the modalities to each other, or copy the right header"
            result.faults.append(DataError("affine-mismatch", message, field="affine", **where, hint=hint))
    return reference


def _agree(grid: _Grid, other: _Grid) -> bool:
    if grid.shape != other.shape or grid.affine is None or other.affine is None:
        return False
    return corner_displacement(grid.affine, other.affine, grid.shape) <= MAX_DISPLACEMENT


def _check_tags(result: CaseCheck, tags: Tags, grid: _Grid | None) -> None:
    slices = None
    if grid is not None and grid.affine is not None:
        axes = nib.io_orientation(grid.affine)[:, 0].tolist()
        slices = grid.shape[axes.index(2)]
    try:
        check_tags(tags, slices=slices, case_id=result.case_id)
    except DataError as error:
        result.faults.append(error)
