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

"""The two views of a batch and their heatmaps, brought together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.trace import Trace

__all__ = ["ViewPair", "brain_at", "evidence_views", "pair_views"]


@dataclass(frozen=True)
class ViewPair:
    """Heatmaps of the first view, moved, beside those of the second view.

    Attributes:
        moved: ``N ... h w d``, heatmaps of the image, warped.
        second: ``N ... h w d``, heatmaps of the warped image.
        mask: ``N 1 h w d`` boolean: inside the warped field of view and the brain.
    """

    moved: Tensor
    second: Tensor
    mask: Tensor


def brain_at(batch: Mapping[str, Any], shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Brain mask of the batch, ``B 1 h w d`` boolean, at the resolution of a heatmap."""
    brain = batch["brain"]
    factors = [whole // part for whole, part in zip(brain.shape[2:], shape, strict=True)]
    if all(whole == part * factor for whole, part, factor in zip(brain.shape[2:], shape, factors, strict=True)):
        # the same mask at half the cost
        return F.avg_pool3d(brain.float(), factors) > 0.5
    return F.adaptive_avg_pool3d(brain.float(), (shape[0], shape[1], shape[2])) > 0.5


def evidence_views(attribute: ClassMap, trace: Trace, batch: Mapping[str, Any]) -> ViewPair:
    """:func:`pair_views` of the sigmoid of the class maps, made once for all terms that look at the same trace.

    The result is kept in ``batch["shared"]``, a dictionary that
    :class:`~monai_rrr.engines.views.PrepareViews` adds and that lives as long as the batch; without it nothing is kept.
    """
    shared = batch.get("shared")
    if shared is None:
        return pair_views(torch.sigmoid(attribute(trace).float()), batch)
    kept = shared.get(attribute)
    if kept is None or kept[0] is not trace:
        kept = (trace, pair_views(torch.sigmoid(attribute(trace).float()), batch))
        shared[attribute] = kept
    views: ViewPair = kept[1]
    return views


def pair_views(heatmaps: Tensor, batch: Mapping[str, Any]) -> ViewPair:
    """Split heatmaps of ``N`` images followed by their ``N`` warped views, and move the first half by the same warp.

    Args:
        heatmaps: ``2N ... h w d``.
        batch: as made by :class:`~monai_rrr.engines.views.PrepareViews`: ``warp`` and ``brain`` (``2N 1 H W D``).

    Raises:
        ValueError: When the batch holds no second view.
    """
    warp = batch.get("warp")
    if warp is None:
        raise ValueError(
            "this term compares two views: set prepare_batch to monai_rrr.engines.PrepareViews with a warp"
        )
    first, second = heatmaps.chunk(2)
    inside = warp.validity(heatmaps.shape[-3:], heatmaps.device) & brain_at(batch, heatmaps.shape[-3:]).chunk(2)[1]
    return ViewPair(warp(first), second, inside)
