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

"""Slices that are tagged to hold none of a region are background for the label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.reduction import full_precision, weighted_mean

__all__ = ["TaggedAbsence"]


@dataclass(frozen=True)
class TaggedAbsence:
    r"""Cross-entropy of the label map where tags say that a region is absent: supervision of cases without any mask.

    .. math:: L = -\operatorname{mean}_{b,k}\, \operatorname{mean}_{v\,:\,\text{tag}_{bk}(z_v) = 0,\ v \in \text{brain}}
              \log \big(1 - \sum_{c \in k} p_c(v)\big)

    The mean runs over the regions that are absent from a slice of a sample; 0, with zero gradient, when there is none
    in the batch. What is known of slices *with* a region is left to the terms on class maps: where in the slice it
    lies, nobody said.

    Args:
        layer: that holds the logits of the label map. Default: what the network returns.
        regions: tissue classes of each region.

    Shape:
        - logits: ``BCHWD``; batch: ``slice_label`` ``B K D``, 0 absent, 1 present, NaN unknown; ``brain`` ``B1HWD``.

    Raises:
        ValueError: When the tags do not fit the logits.

    Reference:
        Ours. Of the tags of Patel and Dolz, arXiv 2104.02488, it takes the negative ones alone.
    """

    layer: str | None = None
    regions: Sequence[Sequence[int]] = ((1, 2, 3), (1, 3), (3,))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return () if self.layer is None else (self.layer,)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        logits = full_precision(trace.logits if self.layer is None else trace.features[self.layer])
        tags = batch["slice_label"]
        if tags.shape != (len(logits), len(self.regions), logits.shape[-1]):
            expected = (len(logits), len(self.regions), logits.shape[-1])
            raise ValueError(f"slice_label must be {expected}, got {tuple(tags.shape)}")
        logarithm = logits.log_softmax(1)
        others = [[c for c in range(logits.shape[1]) if c not in classes] for classes in self.regions]
        absent = torch.stack([logarithm[:, rest].logsumexp(1) for rest in others], 1)
        counts = (tags == 0)[:, :, None, None, :] & batch["brain"].bool()
        number = counts.flatten(2).sum(2)
        value = -(absent * counts).flatten(2).sum(2) / number.clamp(min=1)
        return weighted_mean(value.flatten(), (number > 0).flatten())
