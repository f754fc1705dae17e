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

"""Two explanations of the same prediction must agree (ATCON)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_rrr.attribution.attributor import Attributor
from monai_rrr.attribution.normalize import resize_heatmap
from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.consistency import AttentionConsistencyLoss
from monai_rrr.losses.reduction import full_precision, weighted_mean
from monai_rrr.objectives.erasing import FILLS, blend, soft_mask
from monai_rrr.objectives.evidence import brain_on, class_scores, draw_class, fused, heatmaps_of
from monai_rrr.utils.seeds import step_generator

__all__ = ["AttentionConsistency"]

CONSISTENCY_CONTROLS = ("none", "shuffled", "random")


@dataclass(frozen=True)
class AttentionConsistency:
    r"""Disagreement of a heatmap with the heatmap of the image that a second explanation masked.

    .. math:: E &= \sum_m |E_m|, \quad T = \sigma\big(\omega ((E - \bar E) / s_E - \tfrac12)\big), \quad
              x' = x T + \mathrm{fill}(x)(1 - T) \\
              L &= \operatorname{mean}_b \big(1 - \rho(H_c(x), H_c(x'))\big)

    In [0, 2], see :class:`~monai_rrr.losses.AttentionConsistencyLoss`. Uses no label: the explained class is the
    predicted one, one of the predicted ones when several are (drawn for each sample). Needs one more pass of the
    network. Maps that do not change with the image satisfy it perfectly: keep a supervised anchor or select by a
    metric.

    Schedules are weights of the objective: *finetune* is weight 0 for the classification, *combining* a weight for
    both, *alternating* :class:`~monai_rrr.objectives.Alternation`.

    Args:
        attribute: the first explanation, made of both images; its grid should be at least 6 voxels wide.
        second: the second explanation, such as :class:`~monai_rrr.attribution.InputTimesGradient` with
            ``per_modality`` (magnitudes are summed over the modalities, where it keeps their axis) or, as published,
            :class:`~monai_rrr.attribution.GuidedBackprop`.
        steepness: ``omega`` per standard deviation of ``E``.
        fill: what takes the place of the part that is masked out, see :func:`~monai_rrr.objectives.erasing.blend`.
        blur: standard deviation of the fill ``"blur"``, in voxels.
        detach_second: no gradient through ``E``, and no double backward then.
        squash: see :class:`~monai_rrr.losses.AttentionConsistencyLoss`.
        sigmoid: take the heatmaps as logits.
        control: ``"shuffled"`` (``E`` of the next sample of the batch) or ``"random"`` (a smooth random map with the
            histogram of ``E``).
        seed: of drawn classes and random maps.

    Shape:
        - batch: ``brain`` and ``present`` where there are; a sample without brain does not count.

    Raises:
        ValueError: When an argument is unknown, or a batch of one sample is to be shuffled.

    Reference:
        A. Mirzazadeh et al., ATCON, WACV 2023, arXiv 2210.09705. Differs from it in: ``E`` is divided by its standard
        deviation, so that ``omega`` does not depend on its scale; statistics of each sample over the brain; fill; any
        pair of explanations; 1 - rho.
    """

    attribute: Attributor
    second: Attributor
    steepness: float = 8.0
    fill: str = "blur"
    blur: float = 4.0
    detach_second: bool = False
    squash: bool = True
    sigmoid: bool = False
    control: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise ValueError(f"fill must be one of {FILLS}, got {self.fill!r}")
        if self.control not in CONSISTENCY_CONTROLS:
            raise ValueError(f"control must be one of {CONSISTENCY_CONTROLS}, got {self.control!r}")
        if min(self.steepness, self.blur) <= 0:
            raise ValueError(f"steepness and blur must be positive, got {self.steepness} and {self.blur}")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return tuple(dict.fromkeys((*self.attribute.layers, *self.second.layers)))

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the disagreement."""
        class_idx = self.predicted(trace, batch)
        first = self._heatmap(trace, batch, class_idx)
        again = trace.rerun(self.masked(trace, batch, class_idx), update_statistics=False)
        second = self._heatmap(again, batch, class_idx)
        brain = brain_on(batch, trace.image, first.shape[2:])
        value = AttentionConsistencyLoss(self.squash, reduction="none")(first, second, brain)
        return weighted_mean(value, brain.flatten(2).amax(2))

    def predicted(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """The explained class of each sample, ``B 1``: one with a positive logit, else the largest."""
        logits = class_scores(trace.logits.detach(), batch)
        positive = logits > 0
        drawn = draw_class(positive, batch, self.seed).class_idx
        return torch.where(positive.any(1, keepdim=True), drawn, logits.argmax(1, keepdim=True))

    def masked(self, trace: Trace, batch: Mapping[str, Any], class_idx: Tensor) -> Tensor:
        """The image, filled where the second explanation sees little."""
        image = trace.image.detach()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_second):
            evidence = heatmaps_of(self.second, trace, batch, class_idx).abs().sum(2)
        evidence = resize_heatmap(full_precision(evidence), image.shape[2:])
        brain = brain_on(batch, image, image.shape[2:])
        evidence = self._controlled(evidence, batch)
        dims = tuple(range(2, evidence.ndim))
        count = brain.sum(dims, keepdim=True).clamp(min=1)
        mean = (evidence * brain).sum(dims, keepdim=True) / count
        variance = ((evidence - mean).square() * brain).sum(dims, keepdim=True) / count
        standardized = (evidence - mean) / variance.clamp(min=1e-24).sqrt()
        keep = soft_mask(standardized, 0.5, self.steepness).to(image.dtype)
        return blend(image, keep, brain.to(image.dtype), self.fill, self.blur)

    def _heatmap(self, trace: Trace, batch: Mapping[str, Any], class_idx: Tensor) -> Tensor:
        return fused(heatmaps_of(self.attribute, trace, batch, class_idx, self.sigmoid), batch)

    def _controlled(self, evidence: Tensor, batch: Mapping[str, Any]) -> Tensor:
        if self.control == "shuffled":
            if len(evidence) < 2:
                raise ValueError("control 'shuffled' needs a batch of at least 2 samples, got 1")
            return evidence.roll(1, 0)
        if self.control == "random":
            coarse = [max(2, size // 4) for size in evidence.shape[2:]]
            generator = step_generator(self.seed, int(batch.get("iteration", 0)))
            noise = torch.randn(*evidence.shape[:2], *coarse, generator=generator)
            rank = resize_heatmap(noise, evidence.shape[2:]).to(evidence.device).flatten(2).argsort(2).argsort(2)
            return evidence.flatten(2).sort(2).values.gather(2, rank).reshape(evidence.shape)
        return evidence
