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

"""Tags on all images, masks on few: the terms of the tied autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.reduction import full_precision, weighted_mean

__all__ = ["ImageTags", "TiedSegmentation"]


@dataclass(frozen=True)
class ImageTags:
    r"""Binary cross-entropy of the class logits with the tags of the image.

    .. math:: L = \operatorname{mean}_{b, c\,:\, y_{bc} \text{ known}} \mathrm{BCE}(z_{bc}, y_{bc})

    At least 0; 0 without a known tag. The released code multiplies it by the batch size, which is left out.

    Args:
        background: class without a tag, such as 0; it does not count. Default: every class has one.

    Shape:
        - trace.logits: ``BK``; batch: ``class_label`` ``BK`` in {0, 1}, NaN where unknown.
    """

    background: int | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Nothing must be recorded."""
        return ()

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        logits, tags = full_precision(trace.logits), batch["class_label"].to(trace.logits.device)
        if logits.shape != tags.shape:
            raise ValueError(f"logits {tuple(logits.shape)} do not match class_label {tuple(tags.shape)}")
        known = ~tags.isnan()
        if self.background is not None:
            known = known & (torch.arange(tags.shape[1], device=tags.device) != self.background)
        target = tags.nan_to_num(0.0).to(logits.dtype)
        return weighted_mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), known)


@dataclass(frozen=True)
class TiedSegmentation:
    r"""Cross-entropy and Dice of the relevance maps with the masks, for the samples that have one.

    .. math:: L = \operatorname{mean}_p \mathrm{CE}(s(p), y(p)) +
              \operatorname{mean}_{b, c\,:\, y_{bc} \ne 0} \mathrm{Dice}(s_{bc}, y_{bc})

    Means run over samples with a mask, voxels inside the brain that are not void, and decoded classes; Dice over
    classes that the mask shows, as an absent class has no overlap to speak of. 0, with zero gradient, for a batch
    without masks: what stands in place of a missing mask is never looked at.

    Args:
        exclusive: classes exclude each other, one of them is the background, and the logits of the decoded classes go
            through a softmax; a voxel whose class is not decoded counts for nothing. ``False``: nested or overlapping
            regions, a sigmoid each, and the background is where none is.
        layer: layer that holds the segmentation logits.

    Shape:
        - maps: ``BTH[WD]`` logits of the classes ``class_idx`` ``BT`` of the trace's keyword arguments (default: all).
        - batch: ``label`` ``BKH[WD]`` in {0, 1}, negative or NaN where void; ``has_mask`` ``B`` boolean; optionally
          ``brain`` ``B1H[WD]``.

    Raises:
        ValueError: When the batch lacks masks or ``has_mask``, or shapes do not fit.

    Reference:
        X. Yu et al., arXiv 2407.03009. Differs from it in: Dice; brain; void voxels are ignored, not background; finite
        without masks.
    """

    exclusive: bool = False
    layer: str = "segmentation"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return (self.layer,)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        missing = sorted({"label", "has_mask"} - set(batch))
        if missing:
            raise ValueError(f"segmentation by few masks needs 'label' and 'has_mask', got a batch without {missing}")
        maps = full_precision(trace.features[self.layer])
        label, valid = self._target(maps, trace, batch)
        if self.exclusive:
            decoded = label.sum(1, keepdim=True) > 0
            valid = valid & decoded
            value = -(F.log_softmax(maps, 1) * label).sum(1, keepdim=True)
            probability = maps.softmax(1)
        else:
            value = F.binary_cross_entropy_with_logits(maps, label, reduction="none")
            probability = maps.sigmoid()
        cross_entropy = weighted_mean(value, valid)
        inside = valid.to(maps.dtype)
        dice: Tensor = DiceLoss(reduction="none")(probability * inside, label * inside).flatten(1)
        shown = (label * inside).flatten(2).any(2)
        return cross_entropy + weighted_mean(dice, shown)

    def _target(self, maps: Tensor, trace: Trace, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Masks of the decoded classes ``BTH[WD]``, and where they hold ``B1H[WD]``."""
        label: Tensor = batch["label"].to(maps.device)
        if label.shape[2:] != maps.shape[2:] or len(label) != len(maps):
            raise ValueError(f"label {tuple(label.shape)} does not match segmentation {tuple(maps.shape)}")
        has_mask: Tensor = batch["has_mask"].to(maps.device)
        if has_mask.shape != (len(maps),):
            raise ValueError(f"has_mask must have shape {(len(maps),)}, got {tuple(has_mask.shape)}")
        ones = (1,) * (maps.ndim - 1)
        valid = (label >= 0).all(1, keepdim=True) & has_mask.bool().reshape(-1, *ones)
        if "brain" in batch:
            valid = valid & batch["brain"].to(maps.device).bool()
        class_idx = trace.forward_kwargs.get("class_idx")
        if class_idx is not None:
            index = class_idx.to(maps.device).reshape(*class_idx.shape, *ones[1:])
            label = label.gather(1, index.expand(*class_idx.shape, *label.shape[2:]))
        if label.shape[1] != maps.shape[1]:
            raise ValueError(f"expected masks of {maps.shape[1]} decoded classes, got {label.shape[1]}")
        return torch.where(valid, label.to(maps.dtype), 0.0), valid
