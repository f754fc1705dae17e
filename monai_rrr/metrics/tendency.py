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

"""Habits of an annotator, estimated from masks: shift, shaking, confusion of tissues, and which lesions are missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_rrr.metrics.lesion_recall import found_lesions
from monai_rrr.utils.distance import signed_distance

__all__ = ["Tendency", "estimate_tendency", "miss_threshold", "surface_shift"]


@dataclass(frozen=True)
class Tendency:
    """What an annotator does compared with a reference.

    Args:
        offset_mm: mean shift of the contour of WT in mm; positive draws too large. NaN when nothing can be compared.
        offset_sd_mm: standard deviation of the shift from case to case.
        sigma_mm: standard deviation along the contour within a case; a grid alone makes about 0.4 voxels of it.
        confusion: ``4 x 4``: rows are the classes of the reference, columns those of the annotator; rows sum to 1 (or
            are 0, when the reference lacks the class). Row 0 is what was drawn outside of the reference.
        miss_mm3: lesions below this volume are missed; 0 when none is.
    """

    offset_mm: float
    offset_sd_mm: float
    sigma_mm: float
    confusion: NDArray[np.float64]
    miss_mm3: float


def estimate_tendency(
    annotations: Sequence[NDArray[Any]], references: Sequence[NDArray[Any]], spacings: Sequence[Sequence[float]]
) -> Tendency:
    """Estimate the habits of one annotator from several cases. Compare with the truth of a manifest by difference.

    The reference is the hidden truth where it is known, else a consensus: habits are then relative to it, and what a
    majority shares can't be seen. The same function reads the habits off predictions.

    Args:
        annotations: classes of the annotator: 0 background, 1 NCR, 2 ED, 3 ET.
        references: classes of the reference.
        spacings: voxel size in mm of each case.

    Shape:
        - annotations, references: ``XYZ`` each

    Raises:
        ValueError: When there is no case, or lists or shapes don't match.
    """
    if not len(annotations) or not len(annotations) == len(references) == len(spacings):
        sizes = [len(annotations), len(references), len(spacings)]
        raise ValueError(f"expected one reference and spacing for each of at least one mask, got {sizes}")
    means, variances, lesions = [], [], []
    confusion = np.zeros((4, 4))
    for drawn, truth, spacing in zip(annotations, references, spacings, strict=True):
        shift = surface_shift(drawn > 0, truth > 0, spacing)
        if shift.size:
            means.append(shift.mean())
            variances.append(shift.var())
        either = (drawn > 0) | (truth > 0)
        pairs = 4 * truth[either].astype(np.intp) + drawn[either].astype(np.intp)
        confusion += np.bincount(pairs, minlength=16).reshape(4, 4)
        lesions += found_lesions(drawn > 0, truth > 0, spacing)
    rows = confusion.sum(1, keepdims=True)
    return Tendency(
        offset_mm=float(np.mean(means)) if means else float("nan"),
        offset_sd_mm=float(np.std(means, ddof=1)) if len(means) > 1 else float("nan"),
        sigma_mm=float(np.sqrt(np.mean(variances))) if variances else float("nan"),
        confusion=np.divide(confusion, rows, out=np.zeros_like(confusion), where=rows > 0),
        miss_mm3=miss_threshold(lesions),
    )


def surface_shift(
    mask: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """How far the surface of a mask lies outside of that of a reference, in mm, for the voxels around it.

    The difference of the signed distances within one voxel of the mask's surface; negative where it lies inside.
    Lesions that were not drawn have no surface, and don't count. On a digital ball the mean is up to a third of a voxel
    too small.

    Args:
        mask: True inside.
        reference: True inside.
        spacing: voxel size in mm.

    Returns:
        One value per voxel; none when one of the masks is empty or fills the image.

    Example:
        >>> reference = np.zeros((12, 4, 4), bool)
        >>> reference[:6] = True
        >>> mask = reference.copy()
        >>> mask[6:8] = True
        >>> surface_shift(mask, reference, (1.0, 1.0, 1.0)).mean()
        np.float64(2.0)
    """
    if mask.shape != reference.shape:
        raise ValueError(f"mask {mask.shape} does not match reference {reference.shape}")
    if not mask.any() or not reference.any() or mask.all() or reference.all():
        return np.zeros(0)
    # the surfaces lie in the box around both masks, and so does what is nearest to any voxel of it
    cuts = ndimage.find_objects((mask | reference).astype(np.uint8))[0]
    box = tuple(slice(max(cut.start - 2, 0), cut.stop + 2) for cut in cuts)
    drawn = signed_distance(mask[box], spacing)
    near = np.abs(drawn) <= max(spacing)
    return (drawn - signed_distance(reference[box], spacing))[near].astype(np.float64)


def miss_threshold(lesions: Sequence[tuple[float, bool]]) -> float:
    """Volume that best separates the lesions that were missed from those that were found.

    The limit with the fewest exceptions (lesions below that were found, above that were missed), halfway between the
    volumes on either side in logarithms; 0 when no limit is better than none. Of equal limits the smallest.

    Args:
        lesions: volume in mm3 and whether it was found, as of :func:`~monai_rrr.metrics.found_lesions`.

    Example:
        >>> miss_threshold([(10.0, False), (40.0, False), (90.0, True), (500.0, True)])
        60.0
    """
    ordered = sorted(lesions)
    found = np.array([hit for _, hit in ordered], dtype=bool)
    sizes = np.array([size for size, _ in ordered])
    # exceptions when the first n lesions lie below the limit
    wrong = np.concatenate([[0], found.cumsum()]) + np.concatenate([(~found)[::-1].cumsum()[::-1], [0]])
    possible = np.concatenate([[True], sizes[1:] > sizes[:-1], [True]]) if len(sizes) else np.array([True])
    count = int(np.argmin(np.where(possible, wrong, len(ordered) + 1)))
    if count == 0:
        return 0.0
    return float(sizes[-1] if count == len(sizes) else round(float(np.sqrt(sizes[count - 1] * sizes[count])), 9))
