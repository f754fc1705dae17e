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

"""Ways to estimate the consensus: what an estimate is, votes, and one annotator whom one trusts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.transforms.vote_share import vote_share

__all__ = ["ConsensusEstimate", "TrustAnnotator", "majority_consensus", "vote_consensus"]


class ConsensusEstimate(Protocol):
    """From what was drawn and what the network thinks to a soft consensus.

    :func:`vote_consensus`, :func:`majority_consensus`, :class:`TrustAnnotator`,
    :class:`~monai_rrr.transforms.BandedConsensus`, :class:`~monai_rrr.transforms.StapleConsensus`, or a function of
    your own.
    """

    def __call__(
        self, annotations: Sequence[Tensor], prior: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Tensor | None]:
        """Estimate it for all cases together.

        Args:
            annotations: of each case ``RDHW``, classes, negative where missing.
            prior: of each case ``CDHW``, probabilities of the network.

        Returns:
            the consensus of each case, ``CDHW``, probabilities, zeros where nobody drew, and the reliability of each
            annotator ``R``, if any.
        """
        ...


def vote_consensus(annotations: Sequence[Tensor], prior: Sequence[Tensor]) -> tuple[list[Tensor], None]:
    """The share of the votes; what the network thinks does not count."""
    pairs = zip(annotations, prior, strict=True)
    return [vote_share(drawn[None], num_classes=len(probability))[0] for drawn, probability in pairs], None


def majority_consensus(annotations: Sequence[Tensor], prior: Sequence[Tensor]) -> tuple[list[Tensor], None]:
    """The class with most votes, for certain; of equal ones the lowest. What the network thinks does not count."""
    found, _ = vote_consensus(annotations, prior)
    return [_certain(share.argmax(0), len(share)) * (share.sum(0) > 0) for share in found], None


@dataclass(frozen=True)
class TrustAnnotator:
    """What one annotator drew is the consensus; the share of the votes where this one says nothing.

    The annotator's reliability is 1, that of all others 0, so that the network's consensus is this annotator's version.

    Args:
        index: of the annotator, in the order of ``R``.
    """

    index: int

    def __call__(self, annotations: Sequence[Tensor], prior: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the consensus of each case and the reliabilities.

        Raises:
            ValueError: When there is no such annotator.
        """
        count = len(annotations[0])
        if not 0 <= self.index < count:
            raise ValueError(f"expected an annotator from 0 to {count - 1} to trust, got {self.index}")
        shares, _ = vote_consensus(annotations, prior)
        found = []
        for drawn, share in zip(annotations, shares, strict=True):
            own = drawn[self.index]
            found.append(torch.where(own >= 0, _certain(own.clamp(min=0), len(share)), share))
        return found, F.one_hot(torch.tensor(self.index), count).float()


def _certain(label: Tensor, classes: int) -> Tensor:
    return F.one_hot(label.long(), classes).movedim(-1, 0).float()
