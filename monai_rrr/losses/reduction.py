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

"""Masked sums that all map losses share."""

from __future__ import annotations

import torch
from monai.utils import LossReduction
from torch import Tensor

__all__ = ["broadcast_to_heatmap", "full_precision", "reduced", "weighted_mean"]


def full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in float32 at least: losses on maps are never computed in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``values`` by ``weights`` over everything; exactly 0, with a zero gradient, when all weights are 0.

    Args:
        values: any shape; values of weight 0 may be anything, NaN included.
        weights: non-negative, broadcastable to ``values``.

    Example:
        >>> weighted_mean(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 0.0]))
        tensor(1.)
    """
    weights = weights.to(values.dtype).expand_as(values)
    total = weights.sum()
    kept = torch.where(weights > 0, values, torch.zeros_like(values))
    return (kept * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))


def reduced(values: Tensor, reduction: str) -> Tensor:
    """Mean, sum or the values themselves, by the name of MONAI's ``LossReduction``."""
    if reduction == LossReduction.MEAN.value:
        return values.mean()
    return values.sum() if reduction == LossReduction.SUM.value else values


def broadcast_to_heatmap(mask: Tensor, heatmap: Tensor, name: str) -> Tensor:
    """Expand a mask, whose axes may be 1, to the shape and at least the precision of a heatmap.

    Raises:
        ValueError: When it does not fit.
    """
    fits = mask.ndim == heatmap.ndim and all(m in (1, h) for m, h in zip(mask.shape, heatmap.shape, strict=True))
    if not fits or heatmap.ndim < 3:
        raise ValueError(f"{name} {tuple(mask.shape)} does not match heatmap {tuple(heatmap.shape)}")
    return mask.to(full_precision(heatmap[:0]).dtype).expand_as(heatmap)
