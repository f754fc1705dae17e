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
"""Whether an image has content that can be an MR image: what no checksum and no header can tell."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from monai_rrr.errors import DataError

__all__ = ["check_content", "check_variety", "fingerprint"]

LIMITS = (1e-20, 1e20)
MIN_SHARE = 1e-3
MASK_VALUES = 8
MAX_OUTLIER = 1000
INT16_MAX = 32767
SAMPLES = 32
MIN_VOXELS = 1000

Array = np.ndarray[Any, Any]


def check_content(array: Array) -> None:
    """Refuse an image without content, or with content that would overflow or be lost.

    Args:
        array: finite voxels, 3-D.

    Raises:
        DataError: without case, field and path. ``constant-modality``: one value everywhere, or hardly any voxel that
            is not 0. ``intensity-range``: magnitudes that overflow or vanish in 32 bits. ``intensity-outlier``: voxels
            so bright that 16 bits leave nothing for the rest.
    """
    lowest, highest = array.min(), array.max()
    if lowest == highest:
        raise _empty(f"got {lowest} in all voxels")
    largest = max(abs(float(lowest)), abs(float(highest)))
    if not LIMITS[0] <= largest <= LIMITS[1]:
        message = f"expected magnitudes from {LIMITS[0]:g} to {LIMITS[1]:g}, got a largest one of {largest:g}"
        raise DataError("intensity-range", message, hint="look at scl_slope, or write the image again")
    filled = int(np.count_nonzero(array))
    if filled < MIN_SHARE * array.size:
        raise _empty(f"got 0 in all but {filled} of {array.size} voxels")
    if largest > INT16_MAX or array.dtype.kind == "f":
        tissue = _sample(array)
        tissue = np.abs(tissue[tissue != 0])
        common = float(np.percentile(tissue, 99.5)) if tissue.size else largest
        if largest > MAX_OUTLIER * common:
            message = f"expected comparable values, got {largest:g} where 99.5 % of the image is below {common:g}"
            raise DataError("intensity-outlier", message, hint="clip what is no tissue, such as a burnt-in mark")


def check_variety(array: Array) -> None:
    """Refuse an image that no scanner makes: a mask under the name of an image, or one slice many times.

    Args:
        array: finite voxels, 3-D.

    Raises:
        DataError: without case, field and path. ``few-values``: two values, or at most 8 small integers.
            ``replicated-slices``: all slices along an axis are the same.
    """
    # From cheap to costly: nearly every image passes at the first look.
    sample = _sample(array)
    for axis, size in enumerate(array.shape):
        if size > 1 and all(
            _same_slices(part, axis) for part in (sample.take([0, sample.shape[axis] // 2], axis), sample, array)
        ):
            message = f"expected slices that differ, got {size} times the same one along axis {axis}"
            raise DataError("replicated-slices", message, hint="convert the image again from its source")
    few = sample.ravel()[:: max(1, sample.size // 512)]
    if array.size >= MIN_VOXELS and all(_looks_like_mask(np.unique(part)) for part in (few, sample, array)):
        message = f"expected an image, got only {len(np.unique(array))} different values, as a mask has"
        raise DataError("few-values", message, hint="is it a mask under the name of an image?")


def _same_slices(array: Array, axis: int) -> bool:
    return bool((array == array.take([0], axis)).all())


def _looks_like_mask(values: Array) -> bool:
    whole = len(values) <= MASK_VALUES and bool((values == np.round(values)).all())
    return len(values) <= 2 or (whole and values[0] >= -1 and values[-1] <= MASK_VALUES)


def _empty(got: str) -> DataError:
    hint = "leave the file out; any subset of the modalities is fine"
    return DataError("constant-modality", f"expected an image with content, {got}", hint=hint)


def fingerprint(array: Array) -> str:
    """Hash about 32 voxels along each axis: enough to tell any two scans apart, at 1 % of the cost of all voxels.

    Equal for equal values, whatever the type they are stored in.

    Args:
        array: 3-D voxels in canonical orientation, so that a copy that was stored turned counts as equal.
    """
    sample = np.ascontiguousarray(_sample(array), dtype=np.float32)
    return hashlib.sha256(f"{array.shape}".encode() + sample.tobytes()).hexdigest()


def _sample(array: Array) -> Array:
    return array[tuple(slice(None, None, max(1, size // SAMPLES)) for size in array.shape)]
