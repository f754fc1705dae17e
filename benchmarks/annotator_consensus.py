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

"""Targets of the networks of ``annotator_tendency.py`` that learn one mask per case: votes, STAPLE, EM."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from monai_rrr.transforms import BandedConsensus, StapleConsensus, vote_share

__all__ = ["CONSENSUS", "consensus_of"]

CONSENSUS = ("vote", "staple", "em")


def consensus_of(masks: Tensor, spacing: float, how: str, num_classes: int = 4) -> Sequence[Tensor]:
    """Return the consensus of each case, ``CDHW`` probabilities.

    Args:
        masks: ``N R D H W``, -1 where missing.
        spacing: mm.
        how: one of ``CONSENSUS``; votes are soft, STAPLE gives one class, EM has a confusion matrix per band and
            takes the shares of the classes for a prior.
        num_classes: ``C``.
    """
    if how == "vote":
        return list(vote_share(masks, num_classes=num_classes))
    size = (spacing,) * 3
    if how == "staple":
        found, _ = StapleConsensus(size, num_classes)(list(masks))
        return [F.one_hot(case.argmax(0), num_classes).movedim(-1, 0).float() for case in found]
    return BandedConsensus(size, num_classes, shares=True)(list(masks))[0]
