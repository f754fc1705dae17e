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

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.data import BANDS_MM, consensus_em, consensus_staple, soft_vote

__all__ = ["CONSENSUS", "consensus_of"]

CONSENSUS = ("vote", "staple", "em")


def consensus_of(masks: Tensor, spacing: float, how: str, num_classes: int = 4) -> Sequence[Tensor]:
    """Return the consensus of each case, ``CDHW`` probabilities.

    Args:
        masks: ``N R D H W``, -1 where missing.
        spacing: mm.
        how: one of ``CONSENSUS``; votes are soft, STAPLE needs everybody, EM has a confusion matrix per band.
        num_classes: ``C``.
    """
    if how == "vote":
        return list(soft_vote(masks, num_classes=num_classes))
    drawn = [case.numpy() for case in masks]
    if how == "staple":
        label = torch.stack([torch.from_numpy(consensus_staple(case, num_classes)) for case in drawn])
        return list(F.one_hot(label, num_classes).movedim(-1, 1).float())
    found = consensus_em(drawn, [(spacing,) * 3] * len(drawn), num_classes=num_classes, bands_mm=BANDS_MM)
    return [torch.from_numpy(case).float() for case in found.probabilities]
