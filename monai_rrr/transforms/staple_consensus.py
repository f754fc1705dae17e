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

"""Consensus of several annotators by SimpleITK's STAPLE, region by region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from monai_rrr.transforms.drawn_place import drawn_place
from monai_rrr.transforms.vote_share import vote_share

__all__ = ["StapleConsensus"]


@dataclass(frozen=True)
class StapleConsensus:
    """Binary STAPLE of every nested region of every case, as SimpleITK has it.

    One sensitivity and one specificity for each annotator, region and case; what the network thinks does not count.
    The probability of a class is that of its region less that of the region inside, which is never above it. SimpleITK
    gets the voxels within ``margin`` of all that was drawn, which is what its prior, the mean share of the masks, comes
    from; those further away keep their votes. Its multi-label STAPLE is not used: that one counts in float32, which
    stands still at 16.8 million voxels, and makes a class of its own of voxels that are tied.

    An annotator who leaves voxels out that others of the case tell does not count there, since STAPLE knows no missing
    voxels. A region that nobody drew is nowhere; one that a single annotator tells is where this one says. Leaves the
    device.

    An estimate for :class:`~monai_rrr.handlers.ConsensusUpdate`.

    Args:
        spacing: mm per voxel.
        num_classes: ``C``, 0 is the background.
        regions: classes of each nested region, from the outermost; each has one class that the next one lacks.
        margin: mm.
        iterations: at most so many.

    Raises:
        ValueError: When regions are not nested class by class, or margin or iterations are not positive.

    Reference:
        S. Warfield, K. Zou, W. Wells, Simultaneous truth and performance level estimation (STAPLE), IEEE TMI 2004.

    Example:
        >>> drawn = torch.zeros(3, 6, 6, 6, dtype=torch.int64)
        >>> drawn[:, 2:4, 2:4, 2:4] = 1
        >>> consensus, rho = StapleConsensus((1.0, 1.0, 1.0), num_classes=2, regions=((1,),))([drawn])
        >>> bool((consensus[0].argmax(0) == drawn[0]).all()), rho.tolist()
        (True, [1.0, 1.0, 1.0])
    """

    spacing: Sequence[float]
    num_classes: int = 4
    regions: Sequence[Sequence[int]] = ((1, 2, 3), (1, 3), (3,))
    margin: float = 8.0
    iterations: int = 100

    def __post_init__(self) -> None:
        if self.margin <= 0 or self.iterations < 1:
            raise ValueError(f"margin and iterations must be positive, got {self.margin} and {self.iterations}")
        self._levels()

    def __call__(
        self, annotations: Sequence[Tensor], prior: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Estimate the consensus of each case.

        Args:
            annotations: of each case ``RDHW``, classes, negative where missing.
            prior: is not looked at.

        Returns:
            of each case ``CDHW`` float32, zeros where nobody drew; reliability ``R``: the mean of sensitivity and
            specificity over the regions and cases where an annotator counts. Who never does has the mean of the others.
        """
        found = []
        sums = np.zeros((2, len(annotations[0])))  # of reliabilities, and how many
        for drawn in annotations:
            vote = vote_share(drawn[None], num_classes=self.num_classes)[0]
            place = drawn_place(drawn, self.spacing, self.margin)
            said = drawn.flatten(1)[:, place]
            who = (said >= 0).all(1).nonzero()[:, 0]
            if len(place) and len(who):
                belief = []
                for classes in self.regions:
                    inside = torch.stack([said[who] == c for c in classes]).any(0)
                    probability, reliability = _staple(inside.cpu().numpy(), self.iterations)
                    belief.append(torch.from_numpy(probability))
                    sums[:, who.cpu().numpy()] += np.stack([reliability, np.ones(len(who))])
                vote.flatten(1)[:, place] = self._classes(torch.stack(belief)).to(vote)
            found.append(vote)
        counted = sums[1] > 0
        mean = sums[0].sum() / max(sums[1].sum(), 1)
        rho = np.where(counted, sums[0] / np.maximum(sums[1], 1), mean if counted.any() else 1.0)
        return found, torch.as_tensor(rho, dtype=torch.float32, device=annotations[0].device)

    def _levels(self) -> list[int]:
        """Return the class that each region has and the next one lacks."""
        sets: list[set[int]] = [*(set(classes) for classes in self.regions), set()]
        rings = [outer - inner for outer, inner in pairwise(sets)]
        nested = all(inner < outer for outer, inner in pairwise(sets))
        if not nested or any(len(ring) != 1 for ring in rings) or sets[0] != set(range(1, self.num_classes)):
            got = [tuple(classes) for classes in self.regions]
            raise ValueError(f"expected nested regions, one class less each, of {self.num_classes} classes, got {got}")
        return [ring.pop() for ring in rings]

    def _classes(self, belief: Tensor) -> Tensor:
        """Turn probabilities of nested regions ``K n`` into those of classes ``C n``."""
        belief = belief.cummin(0).values
        outside = torch.cat([torch.ones_like(belief[:1]), belief])
        ring = outside - torch.cat([belief, torch.zeros_like(belief[:1])])
        classes = torch.empty_like(ring)
        classes[[0, *self._levels()]] = ring
        return classes


def _staple(masks: Any, iterations: int) -> tuple[Any, Any]:
    """Return the probability of every voxel ``n`` and the reliability of every annotator ``R`` for masks ``R n``."""
    if len(masks) == 1 or not masks.any() or masks.all():  # STAPLE would divide by zero
        return masks.mean(0), np.ones(len(masks))
    staple: Any = sitk.STAPLEImageFilter()  # type: ignore[no-untyped-call]
    staple.SetForegroundValue(1.0)
    staple.SetMaximumIterations(iterations)
    found = staple.Execute([sitk.GetImageFromArray(mask[None].astype(np.uint8)) for mask in masks])
    reliability = (np.array(staple.GetSensitivity()) + np.array(staple.GetSpecificity())) / 2
    return sitk.GetArrayFromImage(found)[0].astype(np.float64), reliability
