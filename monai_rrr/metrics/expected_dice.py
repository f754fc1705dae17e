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

"""How good a mask would be, for every threshold, estimated from slice tags alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["expected_dice"]

ENOUGH = 0.2
"""Share of the untagged voxels below a threshold from which on the ratio of the two shares is taken as reliable."""


def expected_dice(
    above: Sequence[NDArray[np.integer]],
    inside: Sequence[NDArray[np.integer]],
    tags: Sequence[NDArray[np.bool_]],
    voxel_mm3: Sequence[float],
    thickness_mm: Sequence[float],
) -> NDArray[np.float64] | None:
    r"""Dice of the mask of all cases together, for every threshold, without a mask.

    Untagged slices are all background; tagged ones are a mixture of the same background and of the region, which fills
    an unknown share :math:`\pi` of them. With :math:`F` the share of brain voxels above the threshold and :math:`V` the
    volume of brain in tagged (:math:`+`) and untagged (:math:`-`) slices,

    .. math:: \widehat{TP}(t) = V_+ \big[ F_+(t) - (1 - \pi) F_-(t) \big], \quad
              \widehat{D}(t) = \frac{2\, \widehat{TP}(t)}{\pi V_+ + V_+ F_+(t) + V_- F_-(t)}, \quad
              \pi = \min\Big( 1 - \min_s \frac{1 - F_+(s)}{1 - F_-(s)},\; \frac{\sum \pi_\circ h^3 / 6}{V_+} \Big)

    The first bound on the share is what the heatmap itself tells: no more background can be in the tagged slices than
    they have low voxels. The second is a ball as high as the tagged extent ``h``. It is an estimate: it takes healthy
    tissue to look alike in tagged and untagged slices, and regions to be no wider than high.

    Args:
        above: per case ``Z T``, brain voxels of each slice above each of ``T`` ascending thresholds.
        inside: per case ``Z``, brain voxels of each slice.
        tags: per case ``Z``, whether the slice is tagged.
        voxel_mm3: per case, volume of a voxel.
        thickness_mm: per case, thickness of a slice.

    Returns:
        ``T`` values in [0, 1], or ``None`` where tags can't tell: no tagged or no untagged brain, or no more evidence
        in tagged slices than in others.

    Reference:
        The share of background is the mixture proportion of Blanchard, Lee and Scott, Semi-supervised novelty
        detection, JMLR 11 (2010); its use for a threshold and the ball are ours.

    Example:
        >>> above, inside = np.array([[4, 1], [0, 0]]), np.array([9, 9])
        >>> expected_dice([above], [inside], [np.array([True, False])], [1.0], [3.0])
        array([1. , 0.4])
    """
    found, clean = np.zeros(above[0].shape[1]), np.zeros(above[0].shape[1])
    tagged_mm3 = clean_mm3 = ball_mm3 = 0.0
    for voxels, brain, tag, volume, thickness in zip(above, inside, tags, voxel_mm3, thickness_mm, strict=True):
        found += volume * voxels[tag].sum(axis=0)
        clean += volume * voxels[~tag].sum(axis=0)
        tagged_mm3 += volume * float(brain[tag].sum())
        clean_mm3 += volume * float(brain[~tag].sum())
        ball_mm3 += np.pi / 6 * float(tag.sum() * thickness) ** 3
    if tagged_mm3 == 0 or clean_mm3 == 0:
        return None
    share_found, share_clean = found / tagged_mm3, clean / clean_mm3
    usable = 1 - share_clean >= ENOUGH
    if not usable.any():
        return None
    background = float(((1 - share_found[usable]) / (1 - share_clean[usable])).min())
    share = min(1 - background, ball_mm3 / tagged_mm3)
    if share <= 0:
        return None
    region_mm3 = share * tagged_mm3
    hit = np.clip(found - (1 - share) * tagged_mm3 * share_clean, 0.0, region_mm3)
    dice: NDArray[np.float64] = 2 * hit / (region_mm3 + found + clean)
    return dice
