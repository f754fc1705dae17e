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

"""Where voxels are: the affine of a header, checked, and the distance between two grids."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from monai_rrr.errors import DataError

__all__ = ["MAX_DISPLACEMENT", "checked_affine", "corner_displacement"]

LEGAL_CODES = frozenset(range(6))
MILLIMETERS = (0, 2)
UNITS = {1: "meter", 3: "micrometer"}
MAX_DISTANCE = 1e4
MAX_COSINE = 1e-3
MAX_DISPLACEMENT = 0.1
"""Grids count as equal when no corner moves by more than this, in mm."""


def checked_affine(header: nib.Nifti1Header) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the 4x4 affine (voxel index to mm, RAS) of a header, if the header leaves no doubt about it.

    Raises:
        DataError: ``affine``, when voxel sizes are not positive, neither code is set, the affine is singular, not
            finite, sheared, or more than 10 m away, or when qform, sform and voxel sizes differ by more than 0.1 mm at
            a corner of the grid. ``header-units``, when lengths are not in mm: nibabel ignores the unit, ITK obeys it.
    """
    unit = int(header["xyzt_units"]) & 7
    if unit not in MILLIMETERS:
        message = f"expected lengths in mm, got the unit {UNITS.get(unit, unit)}"
        raise DataError("header-units", message, field="affine", hint="convert the header to mm")
    sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise _fault(f"expected positive voxel sizes in pixdim, got {sizes.tolist()}")
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    if not set(codes.values()) <= LEGAL_CODES:
        raise _fault(f"expected codes from 0 to 5, got {codes}")
    forms = {}
    if codes["sform"]:
        forms["sform"] = np.asarray(header.get_sform(), dtype=np.float64)
    if codes["qform"]:
        forms["qform"] = _qform(header)
    if not forms:
        raise _fault("expected a qform or an sform, got code 0 for both", "write the position into the header")
    for name, affine in forms.items():
        if not np.isfinite(affine).all():
            raise _fault(f"expected a finite {name}, got {affine[:3].tolist()}")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise _fault(f"expected an invertible {name}, got the singular {affine[:3, :3].tolist()}")
        if np.abs(affine).max() > MAX_DISTANCE:
            raise _fault(f"expected a {name} within {MAX_DISTANCE:g} mm, got {affine[:3].tolist()}")
    shape = tuple(int(size) for size in header["dim"][1:4])
    if "sform" in forms:
        _check_sform(forms["sform"], sizes, shape)
    if len(forms) == 2:
        moved = corner_displacement(forms["sform"], forms["qform"], shape)
        if moved > MAX_DISPLACEMENT:
            message = f"expected sform and qform to agree within {MAX_DISPLACEMENT} mm, got {moved:.4g} mm at a corner"
            raise _fault(message, "decide which one is right and write it as both")
    return next(iter(forms.values()))


def corner_displacement(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any], shape: Sequence[int]) -> float:
    """Return by how much, in mm, the corner voxels of a grid differ at most between two affines.

    Args:
        first: affine, 4x4.
        second: affine, 4x4.
        shape: number of voxels along each of the three axes.

    Example:
        >>> corner_displacement(np.eye(4), np.diag([1.0, 1.0, 1.01, 1.0]), (10, 10, 11))
        0.1
    """
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape[:3]))])
    moved = corners @ (np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)).T
    return float(np.round(np.linalg.norm(moved[:, :3], axis=1).max(), 9))


def _check_sform(sform: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], shape: Sequence[int]) -> None:
    """Refuse what only an sform can say, and other readers ignore or refuse."""
    columns = np.linalg.norm(sform[:3, :3], axis=0)
    moved = float((np.abs(columns - sizes) * (np.asarray(shape) - 1)).max())
    if moved > MAX_DISPLACEMENT:
        message = f"expected the voxel sizes {columns.round(6).tolist()} of the sform in pixdim, got {sizes.tolist()}"
        raise _fault(message, "decide which one is right and write it as both")
    cosines = np.abs((sform[:3, :3] / columns).T @ (sform[:3, :3] / columns) - np.eye(3)).max()
    if cosines > MAX_COSINE:
        message = f"expected perpendicular axes, got a sheared sform (cosine {cosines:.3g} between two axes)"
        raise _fault(message, "resample the image onto a grid without shear")


def _qform(header: nib.Nifti1Header) -> np.ndarray[Any, np.dtype[np.float64]]:
    if header["pixdim"][0] == 0:
        # The standard reads 0 as 1, nibabel refuses it.
        header = header.copy()
        header["pixdim"][0] = 1
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, HeaderDataError) as error:
        raise _fault(f"expected a valid qform, got {error}") from error


def _fault(message: str, hint: str | None = None) -> DataError:
    return DataError("affine", message, field="affine", hint=hint)
