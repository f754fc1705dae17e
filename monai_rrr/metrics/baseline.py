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

"""What any method has to beat: an empty mask, and Otsu's threshold on FLAIR."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from monai.transforms import KeepLargestConnectedComponent
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_multiotsu

from monai_rrr.metrics.threshold import as_voxels

__all__ = ["empty_mask", "flair_otsu"]


def empty_mask(shape: Sequence[int]) -> NDArray[np.bool_]:
    """Mask without any foreground.

    Scores Dice 1 where the region is absent and 0 elsewhere, so it shows how much of a mean Dice absent regions give.

    Args:
        shape: spatial shape.

    Example:
        >>> bool(empty_mask((2, 2, 2)).any())
        False
    """
    return np.zeros(tuple(shape), dtype=bool)


def flair_otsu(
    flair: ArrayLike,
    brain: ArrayLike,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    classes: int = 2,
    smooth_mm: float = 0.0,
    largest_component: bool = False,
) -> NDArray[np.bool_]:
    """WT mask from FLAIR alone: the brain voxels in the brightest of Otsu's classes.

    With the defaults this is Otsu's threshold as it is commonly meant, without smoothing or cleaning. It often splits
    tissue from CSF instead of tumor from tissue. ``classes=4, smooth_mm=3, largest_component=True`` is a far stronger
    heuristic, to be named as such where it is reported. An image with fewer values than classes gives an empty mask.

    Args:
        flair: image in any unit.
        brain: voxels to look at; nothing outside is ever foreground.
        spacing: voxel size in mm; used by the smoothing only.
        classes: number of Otsu's classes, at least 2.
        smooth_mm: standard deviation of a Gaussian in mm, normalized within the brain; 0 for none.
        largest_component: keep only the largest connected part (26 neighbors).

    Shape:
        - flair, brain: ``XYZ``

    Raises:
        ValueError: When shapes do not match, FLAIR is not finite in the brain, or an argument is out of range.

    Example:
        >>> flair = np.ones((4, 4, 4))
        >>> flair[1:3, 1:3, 1:3] = 3.0
        >>> int(flair_otsu(flair, np.ones((4, 4, 4))).sum())
        8
    """
    image = np.asarray(flair, dtype=np.float32)
    inside = as_voxels(brain, image.shape, "brain")
    if classes < 2 or smooth_mm < 0:
        raise ValueError(f"expected classes >= 2 and smooth_mm >= 0, got {classes} and {smooth_mm}")
    if not np.isfinite(image[inside]).all():
        raise ValueError(f"FLAIR expected finite values, got {(~np.isfinite(image[inside])).sum()} NaN or Inf voxels")
    if smooth_mm > 0:
        image = _smooth(image, inside, [smooth_mm / s for s in spacing])
    values = image[inside]
    if len(np.unique(values)) < classes:
        return np.zeros(image.shape, dtype=bool)
    counts, edges = np.histogram(values, bins=128)
    threshold = threshold_multiotsu(classes=classes, hist=(counts, edges[1:]))[-1]  # type: ignore[no-untyped-call]
    mask: NDArray[np.bool_] = inside & (image > threshold)
    if largest_component and mask.any():
        mask = KeepLargestConnectedComponent()(mask[None])[0].numpy().astype(bool)
    return mask


def _smooth(image: NDArray[np.float32], inside: NDArray[np.bool_], sigma: Sequence[float]) -> NDArray[np.float32]:
    weight = gaussian_filter(inside.astype(np.float32), sigma)
    return np.where(inside, gaussian_filter(np.where(inside, image, 0.0), sigma) / np.maximum(weight, 1e-6), 0.0)
