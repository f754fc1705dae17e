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

"""Read one NIfTI file only if it is intact: bytes, header, geometry and finiteness are checked, from one read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_rrr.data.decode import decode, read_bytes
from monai_rrr.data.geometry import checked_affine
from monai_rrr.errors import DataError

__all__ = [
    "MAX_BYTES",
    "NiftiVolume",
    "check_sha256",
    "locate",
    "read_images",
    "read_nifti",
    "read_verified",
    "select_volume",
]

HEADER_SIZE = 348
FIRST_OFFSET = 352
MAX_EXTENSION = 1 << 24
BYTES_PER_VOXEL = {2: 1, 256: 1, 4: 2, 512: 2, 8: 4, 768: 4, 16: 4, 1024: 8, 1280: 8, 64: 8}
MAX_BYTES = 320 << 20
"""Largest decoded file that is read by default: a full-size case of four modalities in float64 still fits."""


@dataclass(frozen=True)
class NiftiVolume:
    """A checked image in the orientation of its file.

    Args:
        array: ``HWD``; integers stay as they are in the file, unless the header scales them (then float32).
        affine: 4x4, voxel index to mm in RAS.
        header: header of the file.
        sha256: SHA-256 of the file as it lies on disk.
    """

    array: np.ndarray[Any, Any]
    affine: np.ndarray[Any, np.dtype[np.float64]]
    header: nib.Nifti1Header
    sha256: str

    def canonical(self) -> NiftiVolume:
        """Return the same image with axes flipped and permuted to run right, anterior, superior; nothing is copied."""
        orientation = nib.io_orientation(self.affine)
        turn = nib.orientations.inv_ornt_aff(orientation, self.array.shape)
        array = nib.apply_orientation(self.array, orientation)
        return replace(self, array=array, affine=self.affine @ turn)


def read_verified(
    path: str | Path,
    volume: int | None = None,
    *,
    case_id: str | None = None,
    field: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> NiftiVolume:
    """Read a ``.nii`` or ``.nii.gz`` file, or refuse it.

    The whole gzip stream is decoded once and its checksum and size compared; the number of bytes must be the one that
    the header declares; the affine must be unambiguous; every voxel must be finite. nibabel and SimpleITK read most
    damaged files without a word.

    Args:
        path: the file.
        volume: index in the fourth dimension; needed for 4-D files, refused for others.
        case_id: case to name in errors.
        field: modality or ``"label"``, to name in errors.
        max_bytes: refuse files that declare more decoded bytes, before decoding them.

    Raises:
        DataError: The first fault found, with case, field and path.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "t1.nii.gz")
        >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), file)
        >>> image = read_verified(file)
        >>> image.array.shape, image.array.dtype.name
        ((4, 5, 6), 'int16')
    """
    try:
        image = read_nifti(path, max_bytes=max_bytes)
        return select_volume(replace(image, affine=checked_affine(image.header)), volume)
    except DataError as error:
        raise locate(error, case_id, field, path) from error.__cause__


def read_images(case: Mapping[str, Any]) -> dict[str, NiftiVolume]:
    """Read the images of a case, modality -> image, see :func:`read_verified`."""
    case_id, volumes = str(case["case_id"]), case.get("volumes") or {}
    return {
        name: read_verified(path, volumes.get(name), case_id=case_id, field=name)
        for name, path in case["modalities"].items()
    }


def read_nifti(path: str | Path, *, max_bytes: int = MAX_BYTES) -> NiftiVolume:
    """Read the bytes and the header, and check only these: 3-D or 4-D raw values, ``affine`` is still the identity.

    Raises:
        DataError: The first fault of bytes or header, without case, field and path.
    """
    path = Path(path)
    raw = read_bytes(path, max_bytes)
    compressed = path.name.lower().endswith(".gz")
    content = decode(raw, compressed, HEADER_SIZE, lambda start: _total_bytes(_parse_header(start), max_bytes))
    header = _parse_header(content[:HEADER_SIZE].tobytes())
    shape = _shape(header)
    dtype: np.dtype[Any] = header.get_data_dtype()
    offset = int(header["vox_offset"])
    array = np.frombuffer(content, dtype, count=math.prod(shape), offset=offset).reshape(shape, order="F")
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return NiftiVolume(array, np.eye(4), header, hashlib.sha256(raw).hexdigest())


def select_volume(image: NiftiVolume, volume: int | None) -> NiftiVolume:
    """Take the 3-D image or one volume of a 4-D image, apply the header's scaling, and check that it is finite.

    Raises:
        DataError: ``volume``, ``header-scaling`` or ``non-finite``, without case, field and path.
    """
    array = image.array
    if array.ndim == 4:
        count = array.shape[3]
        if volume is None:
            hint = "say which volume is which modality in a datalist"
            raise DataError("volume", f"expected a 3-D image, got 4-D with {count} volumes", hint=hint)
        if not 0 <= volume < count:
            raise DataError("volume", f"expected a volume from 0 to {count - 1}, got {volume}")
        array = array[..., volume]
    elif volume not in (None, 0):
        raise DataError("volume", f"expected a 4-D image with volume {volume}, got 3-D {array.shape}")
    _check_finite(array)
    scaled = _scale(array, image.header)
    if scaled is not array and not np.isfinite(scaled).all():
        slope, inter = float(image.header["scl_slope"]), float(image.header["scl_inter"])
        message = f"expected values that fit in 32 bits, got an overflow by scl_slope {slope:g} and scl_inter {inter:g}"
        raise DataError("header-scaling", message, hint="write the header again")
    return replace(image, array=scaled)


def _check_finite(array: np.ndarray[Any, Any]) -> None:
    if array.dtype.kind != "f":
        return
    wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
    if wrong:
        nans = int(np.count_nonzero(np.isnan(array)))
        message = f"expected finite values, got {nans} NaN and {wrong - nans} infinite of {array.size} voxels"
        raise DataError("non-finite", message)


def locate(error: DataError, case_id: str | None, field: str | None, path: str | Path | None) -> DataError:
    """Add case, field and path to a fault; a field that it has stays, and the message then names the given one."""
    message = f"{field}: {error.message}" if error.field and field and error.field != field else error.message
    return DataError(error.code, message, case_id=case_id, field=error.field or field, path=path, hint=error.hint)


def check_sha256(found: str, expected: str | None, case_id: str, field: str, path: str | Path) -> None:
    """Refuse a file that is not the one that was checked.

    Raises:
        DataError: ``file-changed``, when ``expected`` is given and differs.
    """
    if expected is not None and found != expected:
        message = f"expected the file with SHA-256 {expected[:12]} that was checked, got {found[:12]}"
        hint = "the file was replaced; verify the data set again"
        raise DataError("file-changed", message, case_id=case_id, field=field, path=path, hint=hint)


def _parse_header(block: bytes) -> nib.Nifti1Header:
    size = block[:4]
    if size in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"):
        raise DataError("header-kind", "expected NIfTI-1, got NIfTI-2", hint="convert it to NIfTI-1")
    if size not in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):
        got = int.from_bytes(size, "little")
        raise DataError("header-kind", f"expected a NIfTI-1 header of size {HEADER_SIZE}, got {got}")
    if block[344:348] != b"n+1\0":
        hint = "files in pairs (.hdr and .img) and Analyze files must be converted to one .nii.gz"
        raise DataError("header-kind", f"expected the magic word b'n+1\\x00', got {block[344:348]!r}", hint=hint)
    endianness = "<" if size == b"\x5c\x01\x00\x00" else ">"
    return nib.Nifti1Header(block, endianness=endianness, check=False)


def _total_bytes(header: nib.Nifti1Header, max_bytes: int) -> int:
    shape = _shape(header)
    code = int(header["datatype"])
    if code not in BYTES_PER_VOXEL:
        raise DataError("header-datatype", f"expected integer or float voxels of up to 64 bits, got datatype {code}")
    itemsize, bits = BYTES_PER_VOXEL[code], int(header["bitpix"])
    if bits != 8 * itemsize:
        raise DataError("header-datatype", f"expected bitpix {8 * itemsize} for datatype {code}, got {bits}")
    offset = float(header["vox_offset"])
    if not (FIRST_OFFSET <= offset <= FIRST_OFFSET + MAX_EXTENSION and offset.is_integer()):
        raise DataError("header-offset", f"expected vox_offset from {FIRST_OFFSET}, got {offset}")
    total = int(offset) + math.prod(shape) * itemsize
    if total > max_bytes:
        message = f"expected at most {max_bytes} bytes, got a header that declares {total} (shape {shape})"
        raise DataError("header-size", message, hint="crop or resample the image, if it really is that large")
    return total


def _shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    dims = [int(size) for size in header["dim"]]
    shape = dims[1 : 1 + dims[0]] if 1 <= dims[0] <= 7 else []
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError("header-dim", f"expected a 3-D or 4-D image of positive size, got dim {dims}")
    if min(shape[:3]) == 1:
        message = f"expected more than one slice along each axis, got the shape {tuple(shape)}"
        raise DataError("header-dim", message, hint="put the slices of a volume into one file")
    return tuple(shape)


def _scale(array: np.ndarray[Any, Any], header: nib.Nifti1Header) -> np.ndarray[Any, Any]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or (slope == 1 and inter == 0):
        return array
    if not (math.isfinite(slope) and math.isfinite(inter)):
        message = f"expected finite scl_slope and scl_inter, got {slope} and {inter}"
        raise DataError("header-scaling", message, hint="readers disagree on such files; write the header again")
    with np.errstate(over="ignore"):
        scaled: np.ndarray[Any, Any] = array.astype(np.float32) * np.float32(slope) + np.float32(inter)
    return scaled
