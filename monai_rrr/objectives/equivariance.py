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

"""Heatmaps must move with the image, and those of different modalities must agree (WSS-CMER)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.heatmap import HeatmapDistanceLoss
from monai_rrr.losses.reduction import weighted_mean
from monai_rrr.objectives.views import evidence_views

__all__ = ["CrossModalEquivariance", "WithinModalEquivariance"]


@dataclass(frozen=True)
class WithinModalEquivariance:
    r"""The heatmap of the warped image must be the warped heatmap of the image, in each modality.

    .. math:: L_\mathrm{ER} = \frac1n \sum_i \big(\textstyle\sum_c y_c\big)^{-1}
              \sum_c y_c\, D\big(\pi A^i_c, \tilde A^i_c\big)

    Compared at the resolution of the maps, over the brain inside the warped field of view, for classes that are
    present; both sides receive gradient. Zero for a network that commutes with the warp; 0 without a positive tag.
    Over a batch, the mean runs over all positive tags of all modalities present, so that samples count by their number
    of positive tags.

    Args:
        attribute: the class maps, in logits; compared after a sigmoid.
        distance: see :class:`~monai_rrr.losses.heatmap.HeatmapDistanceLoss`; ``"mean_square"`` as released.

    Shape:
        - maps: ``2N M K h w d``; batch: as made by :class:`~monai_rrr.engines.views.PrepareViews`.

    Raises:
        ValueError: When ``distance`` is unknown, or the batch holds no second view.

    Reference:
        Patel and Dolz, arXiv 2104.02488, the ER term. Differs from it: 3D; maps are sigmoids, not min-max scaled by
        sample; normalized distance; invalid borders do not count; the mean runs over positive samples only.
    """

    attribute: ClassMap = ClassMap()  # noqa: RUF009  (frozen)
    distance: str = "relative"

    def __post_init__(self) -> None:
        HeatmapDistanceLoss(self.distance)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return self.attribute.layers

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        views = evidence_views(self.attribute, trace, batch)
        distance = HeatmapDistanceLoss(self.distance, reduction="none")
        value = distance(views.moved.flatten(1, 2), views.second.flatten(1, 2), views.mask)
        seen = views.mask.flatten(1).any(1).float()[:, None, None]
        weight = _positive(batch)[:, None, :] * _present(batch)[:, :, None] * seen
        return weighted_mean(value.view_as(weight), weight)


@dataclass(frozen=True)
class CrossModalEquivariance:
    r"""The heatmaps of the modalities must agree, across the two views, as far as each can be trusted.

    .. math:: L_\mathrm{CM} = \big(\textstyle\sum_c y_c\big)^{-1} \sum_c y_c \sum_{i \ne j} w_{ijc}\, \tfrac12
              \big[ g_{jc} (1 - \cos(\pi A^i_c, \mathrm{sg}\, \tilde A^j_c))
              + g_{jc} (1 - \cos(\tilde A^i_c, \mathrm{sg}\, \pi A^j_c)) \big]

    The teacher ``j`` receives no gradient and teaches only while its own score of the view is right (``g``). With
    ``weighting="reliability"`` the weights follow the running tag losses of the modalities, so that T1c teaches ET and
    FLAIR and T2 teach WT; they sum to 1 over the ordered pairs of the modalities present. One modality gives 0. Over a
    batch, the mean runs over all positive tags of samples with several modalities.

    Args:
        attribute: the class maps, in logits; compared after a sigmoid.
        weighting: ``"reliability"``, ``"uniform"`` (as published) or ``"consensus"`` (one teacher per modality: the
            reliability-weighted mean of the others).
        reduction: ``"cosine"`` (1 - cos), ``"sum"`` (2 (1 - cos), the squared distance of normalized maps), ``"mean"``
            (that over the number of voxels, as released: practically inert) or ``"relative"`` (also compares
            amplitudes, see :class:`~monai_rrr.losses.heatmap.HeatmapDistanceLoss`).
        reliability: layer that holds the weights ``M K``.

    Shape:
        - maps: ``2N M K h w d``; batch: as made by :class:`~monai_rrr.engines.views.PrepareViews`.

    Raises:
        ValueError: When ``weighting`` or ``reduction`` is unknown.

    Reference:
        Patel and Dolz, arXiv 2104.02488, the CM term. Differs from it: weighted pairs, 1 - cos instead of a mean over
        all voxels, any subset of modalities.
    """

    attribute: ClassMap = ClassMap()  # noqa: RUF009  (frozen)
    weighting: str = "reliability"
    reduction: str = "cosine"
    reliability: str = "reliability"

    def __post_init__(self) -> None:
        if self.weighting not in ("reliability", "uniform", "consensus"):
            raise ValueError(f"weighting must be reliability, uniform or consensus, got {self.weighting!r}")
        if self.reduction not in ("cosine", "sum", "mean", "relative"):
            raise ValueError(f"reduction must be cosine, sum, mean or relative, got {self.reduction!r}")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return self.attribute.layers if self.weighting == "uniform" else (*self.attribute.layers, self.reliability)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        views = evidence_views(self.attribute, trace, batch)
        right_first, right_second = (trace.logits.detach() > 0).float().chunk(2)
        present = _present(batch)
        trust = self._trust(trace, present)
        pairs = present[:, :, None, None] * trust[:, None] * ~_same(present.shape[1], present.device)[None, :, :, None]
        pairs = pairs / pairs.sum((1, 2), keepdim=True).clamp(min=1e-8)
        moved, second = views.moved.transpose(1, 2), views.second.transpose(1, 2)
        if self.weighting == "consensus":
            share = pairs / pairs.sum(2, keepdim=True).clamp(min=1e-8)
            value = self._against_consensus(moved, second, share, views.mask, right_first, right_second)
            value = (value * pairs.sum(2).movedim(2, 1)).sum(2)
        else:
            one = self._pairwise(moved, second.detach(), views.mask) * right_second.transpose(1, 2)[:, :, None]
            two = self._pairwise(second, moved.detach(), views.mask) * right_first.transpose(1, 2)[:, :, None]
            value = (0.5 * (one + two) * pairs.movedim(3, 1)).sum((2, 3))
        counts = (present.sum(1) > 1) & views.mask.flatten(1).any(1)
        return weighted_mean(value, _positive(batch) * counts.float()[:, None])

    def _trust(self, trace: Trace, present: Tensor) -> Tensor:
        """Weight of each teacher, ``N M K``."""
        if self.weighting == "uniform":
            classes = trace.logits.shape[2]
            return present[:, :, None].expand(-1, -1, classes)
        return present[:, :, None] * trace.features[self.reliability].detach().to(present)[None]

    def _pairwise(self, pupil: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Distances ``N K M M`` of every pupil ``i`` to every teacher ``j``; maps are ``N K M h w d``."""
        inside = mask.unsqueeze(1).to(pupil.dtype)
        a, b = (pupil * inside).flatten(3), (teacher * inside).flatten(3)
        dot = a @ b.transpose(2, 3)
        square_a, square_b = a.square().sum(3)[..., :, None], b.square().sum(3)[..., None, :]
        if self.reduction == "relative":
            return 1 - 2 * dot / (square_a + square_b).clamp(min=1e-8)
        distance = 1 - dot / (square_a * square_b).clamp(min=1e-16).sqrt()
        if self.reduction == "cosine":
            return distance
        voxels = inside.flatten(3).sum(3)[..., None].clamp(min=1) if self.reduction == "mean" else 1.0
        return 2 * distance / voxels

    def _against_consensus(
        self, moved: Tensor, second: Tensor, share: Tensor, mask: Tensor, right_first: Tensor, right_second: Tensor
    ) -> Tensor:
        """Distances ``N K M`` of each modality to the weighted mean of the others that are right."""
        total = torch.zeros(moved.shape[:3], device=moved.device)
        for pupil, teacher, right in ((moved, second, right_second), (second, moved, right_first)):
            weight = share.permute(0, 3, 1, 2) * right.transpose(1, 2)[:, :, None]
            mean = weight / weight.sum(3, keepdim=True).clamp(min=1e-8)
            consensus = torch.einsum("nkij,nkjxyz->nkixyz", mean, teacher.detach())
            distance = torch.diagonal(self._pairwise(pupil, consensus, mask), dim1=2, dim2=3)
            total = total + 0.5 * distance * (weight.sum(3) > 0)
        return total


def _positive(batch: Mapping[str, Any]) -> Tensor:
    """``N K``: tags of the first view, unknown ones as negative."""
    first: Tensor = batch["class_label"].chunk(2)[0]
    return first.nan_to_num(0.0).float()


def _present(batch: Mapping[str, Any]) -> Tensor:
    first: Tensor = batch["present"].chunk(2)[0]
    return first.float()


def _same(count: int, device: torch.device) -> Tensor:
    return torch.eye(count, dtype=torch.bool, device=device)
