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

"""Classification of slabs and slices by their tags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.pooling import masked_log_mean_exp
from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.reduction import weighted_mean
from monai_rrr.objectives.views import brain_at

__all__ = ["Classification", "TagClassification", "tag_loss_by_modality"]


@dataclass(frozen=True)
class Classification:
    r"""Cross-entropy of a plain classifier: softmax for class indices, a sigmoid for each class for tags.

    Averaged over what is known: a class index of -1 and a tag that is NaN do not count. Exactly 0 when nothing is
    known.

    Shape:
        - trace.logits: ``B K``; batch: ``class_label``, long ``B``, or ``B K`` in [0, 1].

    Raises:
        ValueError: When logits and labels do not fit.

    Example:
        >>> from monai_rrr.attribution.trace import Trace
        >>> trace = Trace(torch.nn.Identity(), (), torch.zeros(2, 1, 4), torch.zeros(2, 3), {})
        >>> Classification()(trace, {"class_label": torch.tensor([1, -1])})
        tensor(1.0986)
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """No layer is needed."""
        return ()

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        logits, label = trace.logits.float(), torch.as_tensor(batch["class_label"]).to(trace.logits.device)
        if logits.ndim != 2 or label.shape not in (logits.shape[:1], logits.shape):
            raise ValueError(
                f"expected logits B K and class_label B or B K, got {tuple(logits.shape)} and {tuple(label.shape)}"
            )
        if label.ndim == 1:
            value = F.cross_entropy(logits, label.long(), ignore_index=-1, reduction="none")
            return weighted_mean(value, label >= 0)
        known = ~label.isnan()
        value = F.binary_cross_entropy_with_logits(logits, label.nan_to_num(0.0).float(), reduction="none")
        return weighted_mean(value, known)


@dataclass(frozen=True)
class TagClassification:
    r"""Binary cross-entropy of every modality's scores with the tags of the slab and of its slices.

    .. math:: L = \frac1n \sum_i \tfrac12 \sum_\text{views}
              \big[ \mathrm{BCE}(z^i, y) + \lambda_z \operatorname{mean}_k \mathrm{BCE}(z^i_k, y_k) \big]

    The score of a slice is the log-mean-exp of the class map over the slice's brain. Voxels of a slice without a
    region are certain negatives, which is where the signal comes from. Tags that are NaN are unknown and do not
    count. Over a batch, both means run over all known tags of all modalities present. A positive tag of a warped view
    counts only while at least ``min_mass`` of the first view's evidence stays inside the field of view; negative tags
    always hold.

    Args:
        attribute: the class maps.
        slice_weight: ``lambda_z``.
        sharpness: ``r`` of the pooling; that of the network.
        min_mass: share of evidence that must stay in the field of view.

    Shape:
        - trace.logits: ``B M K``; maps: ``B M K h w d``.
        - batch: ``present`` ``B M``, ``class_label`` ``B K``, ``slice_label`` ``B K D``, ``brain`` ``B 1 H W D``.

    Raises:
        ValueError: When ``slice_weight`` is negative, ``min_mass`` not in [0, 1] or ``sharpness`` not positive.

    Reference:
        Section 4 of the project's method card; the published term is a 2-way softmax on the mean of the map.
    """

    attribute: ClassMap = ClassMap()  # noqa: RUF009  (frozen)
    slice_weight: float = 1.0
    sharpness: float = 5.0
    min_mass: float = 0.9

    def __post_init__(self) -> None:
        if self.slice_weight < 0:
            raise ValueError(f"slice_weight must be at least 0, got {self.slice_weight}")
        if not 0 <= self.min_mass <= 1:
            raise ValueError(f"min_mass must be in [0, 1], got {self.min_mass}")
        if self.sharpness <= 0:
            raise ValueError(f"sharpness must be positive, got {self.sharpness}")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return self.attribute.layers

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        maps = self.attribute(trace)
        brain = brain_at(batch, maps.shape[-3:])
        slices = masked_log_mean_exp(maps, brain.unsqueeze(1), [3, 4], self.sharpness)
        holds = self._positive_holds(maps.detach(), brain, batch)
        present = batch["present"].to(maps.device)[:, :, None]
        slab = _tag_bce(trace.logits, batch["class_label"].unsqueeze(1), holds.unsqueeze(1))
        loss = weighted_mean(*_mask(slab, present))
        if self.slice_weight == 0:
            return loss
        value, weight = _tag_bce(slices, batch["slice_label"].unsqueeze(1), holds[:, None, :, None])
        has_brain = brain.flatten(2, 3).any(2).unsqueeze(1)
        return loss + self.slice_weight * weighted_mean(*_mask((value, weight * has_brain), present[..., None]))

    def _positive_holds(self, maps: Tensor, brain: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """``B K``: whether a positive tag may be trusted: evidence in the brain, of the modalities present, stays."""
        holds = torch.ones(len(maps), maps.shape[2], dtype=torch.bool, device=maps.device)
        warp = batch.get("warp")
        if warp is None:
            return holds
        counts = brain.chunk(2)[0].unsqueeze(1) * batch["present"].to(maps).chunk(2)[0][:, :, None, None, None, None]
        evidence = torch.sigmoid(maps.chunk(2)[0].float()) * counts
        kept = warp.inverse().validity(maps.shape[-3:], maps.device).unsqueeze(1)
        mass = evidence.sum((1, 3, 4, 5))
        share = (evidence * kept).sum((1, 3, 4, 5)) / mass.clamp(min=1e-8)
        return torch.cat([holds[: len(share)], share >= self.min_mass])


def tag_loss_by_modality(logits: Tensor, class_label: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Mean tag loss of each modality and class over a batch, and how many tags it is made of: both ``M K``.

    Args:
        logits: ``B M K``.
        class_label: ``B K``, NaN = unknown.
        present: ``B M``.
    """
    value, weight = _tag_bce(
        logits.detach(), class_label.unsqueeze(1), torch.ones_like(class_label).bool().unsqueeze(1)
    )
    value, weight = _mask((value, weight), present.unsqueeze(2))
    count = weight.sum(0)
    return (value * weight).sum(0) / count.clamp(min=1), count


def _tag_bce(logits: Tensor, tags: Tensor, holds: Tensor) -> tuple[Tensor, Tensor]:
    known = ~tags.isnan() & (holds | (tags < 0.5))
    target = tags.nan_to_num(0.0).to(logits.dtype).expand_as(logits)
    value = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return value, known.expand_as(logits).float()


def _mask(pair: tuple[Tensor, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
    return pair[0], pair[1] * present.to(pair[1].dtype)
