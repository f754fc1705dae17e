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

"""Bytes of the NIfTI files that are written: in the place of the file that was read, and the same ones every time."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["affine_geometry", "header_geometry", "nifti_bytes"]

_FIELDS = {
    "pixdim": 4,
    "sform_code": 1,
    "qform_code": 1,
    **dict.fromkeys(("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"), 1),
    **dict.fromkeys(("srow_x", "srow_y", "srow_z"), 4),
    "xyzt_units": 1,
}


def header_geometry(header: nib.Nifti1Header) -> NDArray[np.float64]:
    """Return the 25 numbers of a header that say where voxels are: sizes, codes, qform, sform and units.

    Nothing else of a header is kept: its free texts (description, file names, extensions) may name a patient.
    """
    parts = [np.asarray(header[name], dtype=np.float64).reshape(-1)[:count] for name, count in _FIELDS.items()]
    return np.concatenate(parts)


def affine_geometry(affine: ArrayLike) -> NDArray[np.float64]:
    """Return the same numbers for an affine (voxel to mm, RAS) that comes from no file: scanner codes, mm."""
    header = nib.Nifti1Header()
    header.set_sform(np.asarray(affine), code=1)
    header.set_qform(np.asarray(affine), code=1)
    header.set_xyzt_units("mm")
    return header_geometry(header)


def nifti_bytes(array: NDArray[Any], geometry: ArrayLike) -> bytes:
    """Return the content of a ``.nii.gz`` file.

    Every reader places the voxels as it places those of the file that the geometry is from, bit for bit, with its codes
    and units. The same arguments give the same bytes. MONAI's ``SaveImage`` drops codes and units, removes a last axis
    of length 1, and writes in place, so that a full disk leaves half a file.

    Args:
        array: ``XYZ``, or ``XYZK`` with several values per voxel; uint8 or float32.
        geometry: of :func:`header_geometry` or :func:`affine_geometry`.

    Raises:
        ValueError: When the array has neither three nor four axes, or the geometry has another length.
        TypeError: When the array holds other numbers.

    Example:
        >>> content = nifti_bytes(np.zeros((4, 5, 1), np.uint8), affine_geometry(np.diag([2.0, 2.0, 3.0, 1.0])))
        >>> image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
        >>> image.shape, nib.aff2axcodes(image.affine), image.header.get_xyzt_units()[0]
        ((4, 5, 1), ('R', 'A', 'S'), 'mm')
    """
    numbers = np.asarray(geometry, dtype=np.float64).reshape(-1)
    if array.ndim not in (3, 4) or len(numbers) != sum(_FIELDS.values()):
        raise ValueError(
            f"expected XYZ or XYZK and {sum(_FIELDS.values())} numbers, got {array.shape} and {len(numbers)}"
        )
    if array.dtype not in (np.uint8, np.float32):
        raise TypeError(f"expected uint8 or float32, got {array.dtype}")
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    start = 0
    for name, count in _FIELDS.items():
        values = numbers[start : start + count]
        if name == "pixdim":
            header["pixdim"][:4] = values
        else:
            header[name] = values if count > 1 else values[0]
        start += count
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["scl_slope"], header["scl_inter"] = 1, 0
    return gzip.compress(header.binaryblock + b"\0\0\0\0" + array.tobytes(order="F"), compresslevel=6, mtime=0)
