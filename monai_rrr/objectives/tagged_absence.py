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

"""Slices that are tagged to hold none of a region have no voxel of it in the label map, in cases that nobody drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.attribution.pooling import masked_log_mean_exp
from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.reduction import full_precision, weighted_mean

__all__ = ["TaggedAbsence"]


@dataclass(frozen=True)
class TaggedAbsence:
    r"""Cross-entropy of the label map where tags say that a region is absent: supervision of cases without any mask.

    .. math:: s_k(v) = \log \frac{\sum_{c \in k} p_c(v)}{\sum_{c \notin k} p_c(v)}, \qquad
              z_{kd} = \frac1r \log \operatorname{mean}_{v\,:\, v_z = d,\ v \in \text{brain}} e^{r\, s_k(v)}, \qquad
              L = \operatorname{mean}_{b,k,d\,:\, \text{not drawn}_b,\ y_{bkd} = 0} \log \big(1 + e^{z_{bkd}}\big)

    The smooth maximum puts the gradient on the voxels that are called the region most, so that a small false lesion
    counts as much as a large one; a mean over the background, which was tried first, hardly moves it. Mean over all
    tags of absence in slices with brain of cases that nobody drew; 0, with zero gradient, when there is none in the
    batch. Where there are masks, they say more, and the term made the label map miss small regions. Tags of presence
    are left to the terms on class maps: a slice that holds a region somewhere asks the label map for more of it than
    there is (tried, too: TC and ET were drawn where they are not).

    Args:
        layer: that holds the logits of the label map. Default: what the network returns.
        regions: tissue classes of each region.
        sharpness: ``r`` of the pooling, see :func:`~monai_rrr.attribution.masked_log_mean_exp`.

    Shape:
        - logits: ``BCHWD``; batch: ``slice_label`` ``B K D``, 0 absent, 1 present, NaN unknown; ``brain`` ``B1HWD``;
          ``annotated`` ``BR``, who drew what; default: nobody anything.

    Raises:
        ValueError: When the tags do not fit the logits, or ``sharpness`` is not positive.

    Reference:
        Ours. Of the tags of Patel and Dolz, arXiv 2104.02488, it takes the negative ones alone, with the pooling of
        :class:`~monai_rrr.objectives.TagClassification`.
    """

    layer: str | None = None
    regions: Sequence[Sequence[int]] = ((1, 2, 3), (1, 3), (3,))
    sharpness: float = 5.0

    def __post_init__(self) -> None:
        if self.sharpness <= 0:
            raise ValueError(f"sharpness must be positive, got {self.sharpness}")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return () if self.layer is None else (self.layer,)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        logits = full_precision(trace.logits if self.layer is None else trace.features[self.layer])
        tags = batch["slice_label"]
        expected = (len(logits), len(self.regions), logits.shape[-1])
        if tags.shape != expected:
            raise ValueError(f"slice_label must be {expected}, got {tuple(tags.shape)}")
        others = [[c for c in range(logits.shape[1]) if c not in classes] for classes in self.regions]
        odds = [
            logits[:, list(own)].logsumexp(1) - logits[:, rest].logsumexp(1)
            for own, rest in zip(self.regions, others, strict=True)
        ]
        brain = batch["brain"].bool()
        score = masked_log_mean_exp(torch.stack(odds, 1), brain, [2, 3], self.sharpness)
        counts = (tags == 0) & brain.flatten(2, 3).any(2)
        if "annotated" in batch:
            counts = counts & ~batch["annotated"].bool().any(1)[:, None, None]
        return weighted_mean(F.softplus(score), counts)
