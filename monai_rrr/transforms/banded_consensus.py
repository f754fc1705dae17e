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

"""Consensus of several annotators by expectation maximization, with errors by distance to a boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.transforms.drawn_place import drawn_place
from monai_rrr.transforms.truncated_distance import truncated_distance
from monai_rrr.transforms.vote_share import vote_share

__all__ = ["BandedConsensus"]


@dataclass(frozen=True)
class _Region:
    """The voxels of a case that count, and what is said there."""

    place: Tensor  # n, in the flat volume
    drawn: Tensor  # R n, -1 where missing
    prior: Tensor | None  # n C, logarithm; None: the shares of the classes
    band: Tensor  # n
    consensus: Tensor  # n C


@dataclass(frozen=True)
class BandedConsensus:
    r"""Dawid-Skene over all cases, one confusion matrix per annotator and band of signed distance.

    .. math:: T_v(c) &\propto p_0(c|v) \prod_{r \in O_v} A_r^{b(v)}[c, y_r(v)] \\
              A_r^b[c, y] &\propto \alpha_{cy} + \sum_{v\,:\, b(v) = b,\ y_r(v) = y} T_v(c)

    starts at the voted labels. Without ``edges`` this is the method of Dawid and Skene, with one matrix for all places;
    with ``shares``, too, :math:`p_0` is not the network's, but the share of each class in the band, which is estimated
    as well. The band of a voxel is that of the region's boundary nearest to it, in the voted labels. Voxels further
    than ``margin`` from all that was drawn keep their votes. In float64, on the device of the annotations. **No method
    recovers from a majority whose errors are alike.**

    The counts ``alpha`` and the start keep classes in their places. In a band where nearly all is background, the row
    of another class is all but empty: with small counts, a start at the share of the votes, or an even ``p_0``, it
    comes to stand for a habit instead, and the result is worse than the votes. One matrix for all places needs no more
    than the usual ``diagonal`` of 5.

    An estimate for :class:`~monai_rrr.handlers.ConsensusUpdate`. On binary masks without ties, and without edges and
    counts, it equals SimpleITK's STAPLE (:class:`~monai_rrr.transforms.StapleConsensus`).

    Args:
        spacing: mm per voxel.
        num_classes: ``C``, 0 is the background.
        regions: classes of each nested region, from the outermost.
        edges: mm, between the bands; none: one matrix for all places.
        diagonal, other: Dirichlet counts ``alpha`` on and off the diagonal.
        margin: mm.
        iterations: of expectation and maximization.
        shares: take the shares of the classes for ``p_0``, whatever the network thinks.

    Reference:
        A. Dawid and A. Skene, Maximum likelihood estimation of observer error-rates using the EM algorithm, 1979.
        Bands, counts and the region of interest are ours.

    Raises:
        ValueError: When the numbers do not fit, or annotations and prior of a case do not.

    Example:
        >>> drawn = torch.zeros(3, 6, 6, 6, dtype=torch.int64)
        >>> drawn[:, 2:4, 2:4, 2:4] = 1
        >>> estimate = BandedConsensus((1.0, 1.0, 1.0), num_classes=2, regions=((1,),))
        >>> consensus, rho = estimate([drawn], [torch.full((2, 6, 6, 6), 0.5)])
        >>> bool((consensus[0].argmax(0) == drawn[0]).all()), rho.shape
        (True, torch.Size([3]))
    """

    spacing: Sequence[float]
    num_classes: int = 4
    regions: Sequence[Sequence[int]] = ((1, 2, 3), (1, 3), (3,))
    edges: Sequence[float] = (-4.0, -1.0, 1.0, 4.0)
    diagonal: float = 100.0
    other: float = 1.0
    margin: float = 8.0
    iterations: int = 10
    shares: bool = False

    def __post_init__(self) -> None:
        if min(self.diagonal, self.other, self.margin) <= 0 or self.iterations < 1:
            raise ValueError(
                f"diagonal, other, margin and iterations must be positive, got {self.diagonal}, {self.other}, "
                f"{self.margin} and {self.iterations}"
            )
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges must rise, got {tuple(self.edges)}")

    def __call__(
        self, annotations: Sequence[Tensor], prior: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Estimate the consensus of all cases together.

        Args:
            annotations: of each case ``RDHW``, classes, negative where missing.
            prior: of each case ``CDHW``, probabilities; may be left out with ``shares``.

        Returns:
            of each case ``CDHW`` float32, zeros where nobody drew; reliability ``R``: the mean of the diagonals, 0 for
            who drew nothing.
        """
        if prior is None and not self.shares:
            raise ValueError("expected a prior of each case, or shares")
        regions, votes = [], []
        priors = [None] * len(annotations) if prior is None or self.shares else prior
        for drawn, probability in zip(annotations, priors, strict=True):
            expected = (self.num_classes, *drawn.shape[1:])
            if probability is not None and probability.shape != expected:
                raise ValueError(f"prior must be {expected}, got {tuple(probability.shape)}")
            vote = vote_share(drawn[None], num_classes=self.num_classes)[0]
            votes.append(vote)
            regions.append(self._region(drawn, probability, vote))
        confusion, share = self._maximized(regions)
        for _ in range(self.iterations):
            regions = [self._expected(region, confusion, share) for region in regions]
            confusion, share = self._maximized(regions)
        for vote, region in zip(votes, regions, strict=True):
            vote.flatten(1)[:, region.place] = region.consensus.T.to(vote.dtype)
        drew = torch.stack([(region.drawn >= 0).any(1) for region in regions]).any(0)
        return votes, confusion.diagonal(dim1=2, dim2=3).mean((1, 2)).float() * drew

    def _region(self, drawn: Tensor, probability: Tensor | None, vote: Tensor) -> _Region:
        place = drawn_place(drawn, self.spacing, self.margin)
        label = vote.argmax(0)
        inside = torch.stack([torch.stack([label == c for c in classes]).any(0) for classes in self.regions])
        limit = max((abs(edge) for edge in self.edges), default=0.0) + 1
        distance = truncated_distance(inside[None], self.spacing, limit)[0].flatten(1)[:, place]
        nearest = distance.gather(0, distance.abs().argmin(0, keepdim=True))[0]
        band = torch.bucketize(nearest, torch.tensor(list(self.edges), device=nearest.device, dtype=nearest.dtype))
        chosen = None if probability is None else probability.flatten(1)[:, place].T.double().clamp(min=1e-12).log()
        consensus = F.one_hot(label.flatten()[place], self.num_classes).double()
        return _Region(place, drawn.flatten(1)[:, place].long(), chosen, band, consensus)

    def _maximized(self, regions: Sequence[_Region]) -> tuple[Tensor, Tensor]:
        """Confusion matrices ``R bands C C``, rows sum to 1, and shares of the classes ``bands C``, as of now."""
        classes, bands = self.num_classes, len(self.edges) + 1
        first = regions[0]
        counts = first.consensus.new_zeros(len(first.drawn), bands * classes, classes)
        mass = first.consensus.new_zeros(bands, classes)
        for region in regions:
            mass.index_add_(0, region.band, region.consensus)
            for r, label in enumerate(region.drawn):
                seen = label >= 0
                counts[r].index_add_(0, (region.band * classes + label)[seen], region.consensus[seen])
        counts = counts.unflatten(1, (bands, classes)).transpose(2, 3)
        smooth = counts.new_full((classes, classes), self.other)
        smooth.fill_diagonal_(self.diagonal)
        counts = counts + smooth
        return counts / counts.sum(3, keepdim=True), mass / mass.sum(1, keepdim=True).clamp(min=1)

    def _expected(self, region: _Region, confusion: Tensor, share: Tensor) -> _Region:
        score = share.clamp(min=1e-12).log()[region.band] if region.prior is None else region.prior.clone()
        for r, label in enumerate(region.drawn):
            said = F.one_hot(label.clamp(min=0), self.num_classes).to(score.dtype) * (label >= 0)[:, None]
            score += torch.einsum("ncy,ny->nc", confusion[r].log()[region.band], said)
        return _Region(region.place, region.drawn, region.prior, region.band, score.softmax(1))
