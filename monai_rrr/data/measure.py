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
"""What is measured in the files of one case: everything that costs time, and nothing that depends on an option."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import nibabel as nib
import numpy as np

from monai_rrr.data.content import check_content, check_variety, fingerprint
from monai_rrr.data.geometry import checked_affine
from monai_rrr.data.nifti import NiftiVolume, locate, read_nifti, select_volume
from monai_rrr.errors import DataError
from monai_rrr.utils.conventions import round_labels

__all__ = ["CaseFacts", "Grid", "LabelFacts", "axial_slices", "measure_case"]

MAX_VALUES = 32


@dataclass(frozen=True)
class Grid:
    """Where the voxels of one file are.

    Args:
        names: modalities in the file, or ``"label"``.
        shape: voxels along the three axes.
        affine: rows of the 4x4 affine, or None when the header leaves doubt.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True)
class LabelFacts:
    """What a label file says, whatever its convention.

    Args:
        counts: value -> number of voxels.
        extents: value -> first and last axial slice, counted from the inferior end; for 32 values at most.
        outside: labeled voxels where every image is 0.
    """

    counts: dict[int, int]
    extents: dict[int, tuple[int, int]]
    outside: int


@dataclass
class CaseFacts:
    """What was measured in one case.

    Args:
        faults: what is wrong with single files.
        hashes: SHA-256 of each file, by field.
        grids: of all files that could be read.
        fingerprints: equal for equal voxels; of each image with content, and of a label that is not empty.
        gaps: share of the case's nonzero voxels that are 0 in a modality, by modality.
        negative: share of voxels below 0, by modality.
        label: of the label file, if there is one that could be read.
    """

    faults: list[DataError] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    grids: list[Grid] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)
    negative: dict[str, float] = field(default_factory=dict)
    label: LabelFacts | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, of a case without faults."""
        return {name: value for name, value in asdict(self).items() if name != "faults"}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CaseFacts:
        """Make the facts again from :meth:`as_json` after it went through JSON."""
        values = dict(content)
        values["grids"] = [
            Grid(tuple(g["names"]), tuple(g["shape"]), g["affine"] and tuple(map(tuple, g["affine"])))
            for g in content["grids"]
        ]
        if (label := content["label"]) is not None:
            counts = {int(value): int(count) for value, count in label["counts"].items()}
            extents = {int(value): (int(span[0]), int(span[1])) for value, span in label["extents"].items()}
            values["label"] = LabelFacts(counts, extents, int(label["outside"]))
        return cls(**values)


def measure_case(
    case_id: str, files: Mapping[str, Sequence[str]], volumes: Mapping[str, Any], max_bytes: int
) -> CaseFacts:
    """Read each file of a case once.

    Args:
        case_id: to name in faults.
        files: path -> modalities in it, or ``["label"]``.
        volumes: modality -> index in the fourth dimension, for 4-D files.
        max_bytes: refuse files that declare more decoded bytes.
    """
    facts = CaseFacts()
    filled: dict[str, np.ndarray[Any, Any]] = {}
    labels: list[np.ndarray[Any, Any]] = []
    for path, names in sorted(files.items(), key=lambda item: "label" in item[1]):
        image = _read(facts, case_id, path, names, max_bytes)
        if image is None:
            continue
        grid = facts.grids[-1]
        for name in names:
            try:
                array = select_volume(image, volumes.get(name)).array
                if name == "label":
                    labels.append(_measure_label(facts, array, grid))
                else:
                    _measure_image(facts, name, array, grid)
                    filled[name] = array != 0
            except DataError as error:
                facts.faults.append(locate(error, case_id, name, path))
    _measure_overlap(facts, filled, labels)
    return facts


def axial_slices(grid: Grid) -> tuple[int, int, bool] | None:
    """Return the axis that runs from inferior to superior, the number of slices, and whether it runs backwards."""
    if grid.affine is None:
        return None
    orientation = nib.io_orientation(np.asarray(grid.affine))
    axis = orientation[:, 0].tolist().index(2)
    return axis, grid.shape[axis], bool(orientation[axis, 1] < 0)


def _read(facts: CaseFacts, case_id: str, path: str, names: Sequence[str], max_bytes: int) -> NiftiVolume | None:
    """Read one file, check bytes, header and affine."""
    listed = ", ".join(names)
    try:
        image = read_nifti(path, max_bytes=max_bytes)
    except DataError as error:
        facts.faults.append(locate(error, case_id, listed, path))
        return None
    facts.hashes.update(dict.fromkeys(names, image.sha256))
    affine = None
    try:
        image = replace(image, affine=checked_affine(image.header))
        affine = tuple(map(tuple, image.affine.tolist()))
    except DataError as error:
        facts.faults.append(locate(error, case_id, listed, path))
    facts.grids.append(Grid(tuple(names), image.array.shape[:3], affine))
    return image


def _canonical(array: np.ndarray[Any, Any], grid: Grid) -> np.ndarray[Any, Any]:
    if grid.affine is None:
        return array
    turned: np.ndarray[Any, Any] = nib.apply_orientation(array, nib.io_orientation(np.asarray(grid.affine)))
    return turned


def _measure_image(facts: CaseFacts, name: str, array: np.ndarray[Any, Any], grid: Grid) -> None:
    check_content(array)
    check_variety(array)
    facts.fingerprints[name] = fingerprint(_canonical(array, grid))
    facts.negative[name] = float(np.count_nonzero(array < 0)) / array.size if array.min() < 0 else 0.0


def _measure_label(facts: CaseFacts, array: np.ndarray[Any, Any], grid: Grid) -> np.ndarray[Any, Any]:
    labeled: np.ndarray[Any, Any] = array != 0
    values = round_labels(array[labeled])
    found, counts = np.unique(values, return_counts=True)
    table = {int(value): int(count) for value, count in zip(found.tolist(), counts.tolist(), strict=True)}
    if values.size:
        where = np.flatnonzero(_canonical(array, grid)).astype(np.int64)
        facts.fingerprints["label"] = hashlib.sha256(f"{array.shape}{table}".encode() + where.tobytes()).hexdigest()
    axial, extents = axial_slices(grid), {}
    if axial is not None and len(found) <= MAX_VALUES:
        axis, slices, backwards = axial
        for value in table:
            planes = np.flatnonzero((np.abs(array - value) < 0.5).any(axis=tuple({0, 1, 2} - {axis})))
            first, last = int(planes[0]), int(planes[-1])
            extents[value] = (slices - 1 - last, slices - 1 - first) if backwards else (first, last)
    facts.label = LabelFacts({0: array.size - values.size, **table}, extents, 0)
    return labeled


def _measure_overlap(
    facts: CaseFacts, filled: Mapping[str, np.ndarray[Any, Any]], labels: Sequence[np.ndarray[Any, Any]]
) -> None:
    """Compare where the files have content; only if they have one shape, since anything else is a fault anyway."""
    everything = [*filled.values(), *labels]
    if not filled or any(a.shape != b.shape for a, b in combinations(everything, 2)):
        return
    brain = np.logical_or.reduce(list(filled.values()))
    count = int(np.count_nonzero(brain))
    for name, mask in filled.items():
        facts.gaps[name] = 1 - int(np.count_nonzero(mask)) / count
    for labeled in labels:
        if facts.label is not None:
            facts.label = replace(facts.label, outside=int(np.count_nonzero(labeled & ~brain)))
