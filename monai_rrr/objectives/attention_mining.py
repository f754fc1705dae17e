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

"""No evidence may be left when what the heatmap shows is erased (GAIN)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_rrr.attribution.attributor import Attributor
from monai_rrr.attribution.normalize import resize_heatmap
from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.reduction import full_precision, weighted_mean
from monai_rrr.objectives.erasing import FILLS, blend, soft_mask
from monai_rrr.objectives.evidence import CLASSES, brain_on, choose_classes, class_scores, fused, heatmaps_of

__all__ = ["AttentionMining"]

SECOND_PASS = ("norm_frozen", "shared", "weights_frozen")


@dataclass(frozen=True)
class AttentionMining:
    r"""Score of a class on the image from which the class's own heatmap was erased: the self-guidance of GAIN.

    .. math:: G_c &= \frac{\max(H_c, 0)}{\mathrm{sg} \max_p H_c(p)}, \quad
              T_c = \sigma(\omega (\uparrow G_c - \sigma_0)) \\
              x^*_c &= x (1 - T_c) + \mathrm{fill}(x)\, T_c, \quad
              L = \operatorname{mean}_{c \text{ chosen}} \sigma(z_c(x^*_c))

    In [0, 1]. Small when the heatmap shows all the evidence for the class, but also when every logit is low: never
    train on it without classification. Each chosen class costs one more pass of the network. Three re-implementers
    report that they could not reproduce a gain by it: use it with an eye on the controls.

    Args:
        attribute: makes the heatmaps; any attributor. Modalities are averaged: all are erased alike.
        steepness: ``omega``.
        threshold: ``sigma_0``, as a share of the maximum.
        fill: what takes the place of the erased part, see :func:`~monai_rrr.objectives.erasing.blend`.
        blur: standard deviation of the fill ``"blur"``, in voxels.
        classes: ``"one"`` (drawn among the classes present, for each sample), ``"positive"`` (all of them, as
            published) or ``"all"``.
        logit: score by the logit, as published, instead of its sigmoid; it has no lower bound.
        second_pass: ``"norm_frozen"`` (statistics of normalization do not move: erased images are no data),
            ``"shared"`` (they move), ``"weights_frozen"`` (gradient reaches the weights through the heatmap only).
        sigmoid: take the heatmaps as logits; for the class maps of
            :class:`~monai_rrr.networks.MultimodalCAMNet`.
        seed: of the drawn classes.

    Shape:
        - batch: ``class_label`` ``B`` or ``B K``; ``brain`` and ``present`` where there are.

    Raises:
        ValueError: When an argument is unknown or not in range.

    Reference:
        K. Li et al., Tell me where to look: guided attention inference network, CVPR 2018, arXiv 1802.10171, Eq. 1 to
        5. Differs from it in: the map is divided by its maximum, of each sample and class; the erased part is filled;
        one class per sample; bounded score. The paper gives no ``omega`` and ``sigma_0``.
    """

    attribute: Attributor
    steepness: float = 10.0
    threshold: float = 0.5
    fill: str = "blur"
    blur: float = 4.0
    classes: str = "one"
    logit: bool = False
    second_pass: str = "norm_frozen"
    sigmoid: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("fill", self.fill, FILLS),
            ("classes", self.classes, CLASSES),
            ("second_pass", self.second_pass, SECOND_PASS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if min(self.steepness, self.blur) <= 0:
            raise ValueError(f"steepness and blur must be positive, got {self.steepness} and {self.blur}")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return self.attribute.layers

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean score on the erased images."""
        chosen = choose_classes(trace, batch, self.classes, self.seed)
        shown = self.shown(trace, batch, chosen.class_idx)
        scores = []
        for column in range(shown.shape[1]):
            erased = self.erase(trace, batch, shown[:, column : column + 1])
            again = trace.rerun(
                erased,
                update_statistics=self.second_pass == "shared",
                frozen_weights=self.second_pass == "weights_frozen",
            )
            logits = full_precision(again.logits)
            logits = class_scores(logits if self.logit else logits.sigmoid(), batch)
            scores.append(logits.gather(1, chosen.class_idx[:, column : column + 1]))
        return weighted_mean(torch.cat(scores, 1), chosen.weight)

    def shown(self, trace: Trace, batch: Mapping[str, Any], class_idx: Tensor) -> Tensor:
        """Soft mask ``B T H W [D]`` of what the heatmaps show, on the grid of the image."""
        maps = fused(heatmaps_of(self.attribute, trace, batch, class_idx, self.sigmoid), batch)
        positive = full_precision(maps).clamp(min=0) * brain_on(batch, trace.image, maps.shape[2:])
        largest = positive.detach().amax(tuple(range(2, maps.ndim)), keepdim=True).clamp(min=1e-8)
        scaled = resize_heatmap(positive / largest, trace.image.shape[2:])
        return soft_mask(scaled, self.threshold, self.steepness)

    def erase(self, trace: Trace, batch: Mapping[str, Any], shown: Tensor) -> Tensor:
        """The image of a trace without what is shown, ``B 1 H W [D]``."""
        image = trace.image.detach()
        brain = brain_on(batch, image, image.shape[2:])
        return blend(image, (1 - shown).to(image.dtype), brain.to(image.dtype), self.fill, self.blur)
