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

"""The brain of one case as a compact int16 array, cut out and optionally down-sampled once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from torch.nn.functional import avg_pool3d

from monai_rrr.data.content import check_content
from monai_rrr.data.geometry import MAX_DISPLACEMENT, corner_displacement
from monai_rrr.data.nifti import NiftiVolume, check_sha256, locate, read_verified
from monai_rrr.errors import DataError
from monai_rrr.utils.enums import MODALITIES, REGIONS
from monai_rrr.utils.nifti_file import header_geometry

__all__ = ["BrainBox", "make_brain_box", "tag_extents"]

_INT16_MAX = 32767
_STATISTICS_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class BrainBox:
    """Four modalities of one brain on one grid, in canonical RAS orientation.

    Args:
        case_id: name of the case.
        image: int16, ``MXYZ``, modalities in the order of ``MODALITIES``. 0 outside the brain and for absent
            modalities; brain voxels that are 0 in a present modality (cut-off field of view) hold that modality's mean.
        brain: bool, ``XYZ``: nonzero in any modality.
        present: bool, ``M``.
        mean: float32, ``M``, over the modality's nonzero voxels, clipped to their 0.5 and 99.5 percentiles; units of
            ``image``.
        std: float32, ``M``, the same way; 1 for absent modalities.
        slope: float32, ``M``: intensity in the source file = ``image * slope``.
        affine: 4x4, box voxel -> world in mm.
        source_affine: 4x4, voxel of the source file -> world in mm.
        source_shape: the source file's own grid.
        tag_grid: ``(scale, offset)``: box index ``z`` lies at axial slice ``scale * z + offset`` of the case, counted
            from the inferior end as tags are.
        source_header: where the source file's header puts its voxels, see
            :func:`~monai_rrr.utils.nifti_file.header_geometry`.
        source_sha256: modality -> SHA-256 of its file, empty for absent modalities.
    """

    case_id: str
    image: NDArray[np.int16]
    brain: NDArray[np.bool_]
    present: NDArray[np.bool_]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    slope: NDArray[np.float32]
    affine: NDArray[np.float64]
    source_affine: NDArray[np.float64]
    source_shape: tuple[int, int, int]
    tag_grid: tuple[float, float]
    source_header: NDArray[np.float64]
    source_sha256: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as the slab transforms read them. Arrays are not copied."""
        return {
            "case_id": self.case_id,
            "image": self.image,
            "brain": self.brain,
            "present": self.present,
            "mean": self.mean,
            "std": self.std,
            "affine": self.affine,
            "source_affine": self.source_affine,
            "source_shape": np.asarray(self.source_shape),
            "tag_grid": np.asarray(self.tag_grid),
            "source_header": self.source_header,
            "source_sha256": dict(self.source_sha256),
        }


def tag_extents(tags: Mapping[str, tuple[int, int] | None]) -> NDArray[np.float64]:
    """Return the slice tags of one case as an array.

    Args:
        tags: region -> (first, last) axial slice, inclusive, or None when the region is absent. All regions must be
            named.

    Returns:
        Shape ``(3, 2)`` in the order of ``REGIONS``; NaN for absent regions.

    Example:
        >>> tag_extents({"WT": (41, 97), "TC": (50, 80), "ET": None})
        array([[41., 97.],
               [50., 80.],
               [nan, nan]])
    """
    missing = [region for region in REGIONS if region not in tags]
    if missing:
        raise ValueError(f"tags must name the regions {', '.join(REGIONS)}, but {', '.join(missing)} is missing")
    rows = [(np.nan, np.nan) if tags[region] is None else tags[region] for region in REGIONS]
    return np.asarray(rows, dtype=np.float64)


def make_brain_box(
    case: Mapping[str, Any], spacing: float | None = None, hashes: Mapping[str, str] | None = None
) -> BrainBox:
    """Read the modalities of a case, verify them and cut out the brain. Labels are never read.

    With ``spacing``, each axis is averaged over the largest whole number of voxels that is not coarser than it, so the
    result is at least as fine as asked for. The average runs over the modality's nonzero voxels: edges are not
    darkened.

    Args:
        case: a case of a datalist: ``case_id``, ``modalities`` and, for 4-D files, ``volumes``.
        spacing: wanted voxel size in mm; None keeps the grid of the files.
        hashes: SHA-256 that the file of each modality must have, by modality.

    Raises:
        DataError: When a file is damaged or not the expected one, a modality is empty, or the modalities do not share
            one grid.
    """
    if spacing is not None and not spacing > 0:
        raise ValueError(f"spacing must be positive (mm), got {spacing}")
    volumes = _read(case, hashes or {})
    first = next(iter(volumes.values()))
    source_affine, source_shape = first.affine, (first.array.shape[0], first.array.shape[1], first.array.shape[2])
    arrays, affine = _canonical({name: v.array for name, v in volumes.items()}, source_affine, source_shape)
    start, stop = _bounding_box(arrays)
    values = np.zeros((len(MODALITIES), *(stop - start)), dtype=np.float32)
    for name, array in arrays.items():
        values[MODALITIES.index(name)] = array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    size = np.linalg.norm(affine[:3, :3], axis=0)
    factor = np.ones(3, dtype=int) if spacing is None else np.maximum(np.floor(spacing / size + 1e-3), 1).astype(int)
    values, brain = _pool(values, factor)
    box_to_canonical = np.diag([*factor.astype(float), 1.0])
    box_to_canonical[:3, 3] = start + (factor - 1) / 2
    present = np.array([name in arrays for name in MODALITIES])
    empty = [name for name, array in zip(MODALITIES, values, strict=True) if name in arrays and not array[brain].any()]
    if empty:
        message = f"expected a brain, got hardly a voxel that is not 0 at {spacing or 'full'} mm"
        raise DataError("brain-empty", message, case_id=str(case["case_id"]), field=empty[0])
    image, mean, std, slope = _quantize(values, brain, present)
    return BrainBox(
        case_id=str(case["case_id"]),
        image=image,
        brain=brain,
        present=present,
        mean=mean,
        std=std,
        slope=slope,
        affine=affine @ box_to_canonical,
        source_affine=source_affine,
        source_shape=source_shape,
        tag_grid=(float(factor[2]), float(box_to_canonical[2, 3])),
        source_header=header_geometry(first.header),
        source_sha256={name: volumes[name].sha256 if name in volumes else "" for name in MODALITIES},
    )


def _read(case: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, NiftiVolume]:
    case_id, volumes = str(case["case_id"]), case.get("volumes") or {}
    unknown = set(case["modalities"]) - set(MODALITIES)
    if unknown or not case["modalities"]:
        raise DataError(
            "modality-unknown",
            f"expected some of {', '.join(MODALITIES)}, got {', '.join(sorted(unknown)) or 'none'}",
            case_id=case_id,
            field="modalities",
        )
    read: dict[str, NiftiVolume] = {}
    for name in (m for m in MODALITIES if m in case["modalities"]):
        path = str(case["modalities"][name])
        where = {"case_id": case_id, "field": name, "path": path}
        volume = read_verified(path, volumes.get(name), case_id=case_id, field=name)
        check_sha256(volume.sha256, hashes.get(name), case_id, name, path)
        read[name], array, affine = volume, volume.array, volume.affine
        try:
            check_content(array)
        except DataError as error:
            raise locate(error, case_id, name, path) from None
        first = next(iter(read))
        shape, grid = read[first].array.shape, read[first].affine
        if array.shape != shape:
            raise DataError("shape-mismatch", f"expected the shape {shape} of {first}, got {array.shape}", **where)
        moved = corner_displacement(affine, grid, shape)
        if moved > MAX_DISPLACEMENT:
            message = f"expected the position of {first} within {MAX_DISPLACEMENT} mm, got {moved:.4g} mm"
            raise DataError("affine-mismatch", message, **where)
    return read


def _canonical(
    arrays: Mapping[str, NDArray[Any]], affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
    orientation = io_orientation(affine)
    to_source = inv_ornt_aff(orientation, shape)
    turned = {name: apply_orientation(a, orientation) for name, a in arrays.items()}
    return turned, affine @ to_source


def _bounding_box(arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    start, stop = [], []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        nonzero = np.any([array.any(axis=others) for array in arrays.values()], axis=0)
        inside = np.flatnonzero(nonzero)
        start.append(max(int(inside[0]) - 1, 0))
        stop.append(min(int(inside[-1]) + 2, len(nonzero)))
    return np.asarray(start), np.asarray(stop)


def _pool(values: NDArray[np.float32], factor: NDArray[np.int_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    nonzero = values != 0
    brain = nonzero.any(axis=0)
    if (factor == 1).all():
        return values, brain
    kernel = tuple(int(f) for f in factor)
    pad = [p for n, f in zip(values.shape[:0:-1], kernel[::-1], strict=True) for p in (0, -n % f)]

    def average(array: NDArray[Any]) -> NDArray[np.float32]:
        tensor = torch.nn.functional.pad(torch.from_numpy(array.astype(np.float32)), pad)
        return np.asarray(avg_pool3d(tensor[None], kernel)[0])

    weight = average(nonzero)
    pooled = average(values) / np.maximum(weight, 1e-6)
    inside = average(brain[None])[0] >= 0.5 - 1e-6
    return pooled * inside, inside


def _quantize(
    values: NDArray[np.float32], brain: NDArray[np.bool_], present: NDArray[np.bool_]
) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    count = len(values)
    # Slices lie one after the other in memory, because a slab is a run of slices.
    image = np.zeros((count, values.shape[3], *values.shape[1:3]), dtype=np.int16).transpose(0, 2, 3, 1)
    mean, std, slope = np.zeros(count, np.float32), np.ones(count, np.float32), np.ones(count, np.float32)
    for m in np.flatnonzero(present):
        inside = values[m][brain]
        largest = float(np.abs(inside).max())
        if largest > _INT16_MAX or not (inside == np.round(inside)).all():
            slope[m] = largest / _INT16_MAX
            inside = inside / slope[m]
        nonzero = inside[inside != 0]
        clipped = np.clip(nonzero, *np.percentile(nonzero, _STATISTICS_PERCENTILES)).astype(np.float64)
        mean[m] = clipped.mean()
        std[m] = max(float(clipped.std()), 1e-3)
        stored = np.where(inside == 0, mean[m], inside)
        image[m][brain] = np.clip(np.round(stored), -_INT16_MAX, _INT16_MAX).astype(np.int16)
    return image, mean, std, slope
