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

"""Localization of evidence as a MONAI metric: cumulated over samples, undefined cases counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from monai_rrr.metrics.localization import (
    checked_pair,
    energy_share,
    half_maximum_iou,
    outside_sign,
    plain_tensor,
    pointing_game,
)

__all__ = ["LOCALIZATION", "LocalizationScores"]

LOCALIZATION: tuple[str, ...] = ("epg", "pointing", "iou", "lift", "outside_sign", "marker_mass")


class LocalizationScores(CumulativeIterationMetric):
    r"""Scores of where evidence lies, for every sample and class, cumulated over batches and processes.

    ============== ===================================================================================== =============
    score          meaning                                                                               uniform map
    ============== ===================================================================================== =============
    epg            share of the positive evidence in the mask, :func:`energy_share`                      size of mask
    pointing       strongest voxel within the tolerance of the mask, :func:`pointing_game`               size of mask
    iou            mask and voxels above half of the maximum, :func:`half_maximum_iou`                   size of mask
    lift           ``epg`` divided by the mask's share of the brain: corrects for large masks            1
    outside_sign   signed evidence outside of the mask, :func:`outside_sign`                             1 - size
    marker_mass    share of the positive evidence on a known marker, :func:`energy_share`                size of marker
    ============== ===================================================================================== =============

    A score that is not defined is NaN, never 0, and isn't part of the mean: all but ``marker_mass`` where the mask is
    empty (the class has no place); all but ``iou`` (0) and ``pointing`` (NaN) where the heatmap holds no positive
    evidence; ``lift`` where the mask doesn't meet the brain; ``marker_mass`` without a marker. :meth:`undefined` counts
    them, and a report should print the count beside the mean.

    Args:
        spacing: voxel size in mm. ``None`` reads it from the affine of ``MetaTensor`` masks.
        tolerance_mm: of the pointing game.
        scores: any of :data:`LOCALIZATION`; the first is the default of :meth:`aggregate`.

    Shape:
        - y_pred: heatmaps, ``BTH[WD]``, larger is more evidence; y: masks, the same or ``B1H[WD]``, 1 inside
        - keyword arguments: ``brain`` and ``marker``, ``B1H[WD]`` (brain default: everywhere; marker default: none)
        - output: ``BT(scores)``

    Raises:
        ValueError: When shapes don't match, a heatmap isn't finite, or no spacing is known.

    Example:
        >>> metric = LocalizationScores(spacing=(1.0, 1.0, 1.0), scores=["epg", "lift"])
        >>> mask = torch.zeros(2, 1, 4, 4, 4)
        >>> mask[0, :, :2] = 1
        >>> _ = metric(torch.ones(2, 1, 4, 4, 4), mask)
        >>> metric.aggregate(), metric.aggregate("lift"), metric.undefined()
        (tensor(0.5000), tensor(1.), {'epg': 1, 'lift': 1})
    """

    def __init__(
        self,
        spacing: Sequence[float] | None = None,
        tolerance_mm: float = 0.0,
        scores: Sequence[str] = LOCALIZATION,
    ) -> None:
        super().__init__()
        if not scores or any(name not in LOCALIZATION for name in scores):
            raise ValueError(f"scores expected some of {LOCALIZATION}, got {tuple(scores)}")
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)
        self.tolerance_mm = tolerance_mm
        self.scores = tuple(scores)

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Any:
        # MONAI passes keyword arguments to every sample as they are; masks belong to one sample each
        masks = {name: kwargs.pop(name) for name in ("brain", "marker") if kwargs.get(name) is not None}
        if y is None:
            raise ValueError("LocalizationScores expected heatmaps and masks, got no masks")
        rows = [
            self._compute_tensor(
                heatmap.detach().unsqueeze(0),
                mask.detach().unsqueeze(0),
                **{name: found[index].unsqueeze(0) for name, found in masks.items()},
                **kwargs,
            )
            for index, (heatmap, mask) in enumerate(zip(y_pred, y, strict=True))
        ]
        return torch.cat(rows)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if y is None:
            raise ValueError("LocalizationScores expected heatmaps and masks, got no masks")
        unknown = sorted(set(kwargs) - {"brain", "marker"})
        if unknown:
            raise ValueError(f"expected the keyword arguments brain and marker, got {', '.join(unknown)}")
        found = self._rows(plain_tensor(y_pred), y, {name: mask for name, mask in kwargs.items() if mask is not None})
        return torch.stack([found[name] for name in self.scores], dim=-1)

    def _rows(self, heatmap: Tensor, mask: Tensor, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        there = checked_pair(heatmap, mask)[1].flatten(2).any(2).expand(heatmap.shape[:2])
        nowhere = torch.full(heatmap.shape[:2], torch.nan, device=heatmap.device)
        found: dict[str, Tensor] = {"marker_mass": nowhere}
        if "epg" in self.scores or "lift" in self.scores:
            found["epg"] = torch.where(there, energy_share(heatmap, mask), torch.nan)
            found["lift"] = found["epg"] / _share_of_brain(heatmap, mask, others.get("brain"))
        if "pointing" in self.scores:
            found["pointing"] = pointing_game(heatmap, mask, self._spacing_of(mask), self.tolerance_mm)
        if "iou" in self.scores:
            found["iou"] = half_maximum_iou(heatmap, mask)
        if "outside_sign" in self.scores:
            found["outside_sign"] = torch.where(there, outside_sign(heatmap, mask), torch.nan)
        if "marker_mass" in self.scores and "marker" in others:
            marker = others["marker"]
            placed = checked_pair(heatmap, marker)[1].flatten(2).any(2)
            found["marker_mass"] = torch.where(placed, energy_share(heatmap, marker), torch.nan)
        return {name: values.float() for name, values in found.items()}

    def _spacing_of(self, mask: Tensor) -> Sequence[float]:
        if self.spacing is not None:
            return self.spacing
        if not isinstance(mask, MetaTensor):
            raise ValueError(f"expected a spacing in mm or a MetaTensor as mask, got {type(mask).__name__} alone")
        affine = mask.affine.reshape(-1, *mask.affine.shape[-2:])[0]
        sizes: list[float] = affine[:-1, :-1].norm(dim=0).tolist()
        return sizes

    def aggregate(self, score: str | None = None, class_column: int | None = None) -> Tensor:
        """Mean over the samples (and classes) for which a score is defined; NaN when there are none.

        Args:
            score: one of the scores. Default: the first.
            class_column: column of the heatmaps, from 0. Default: all.

        Returns:
            A scalar.
        """
        return self.values(score, class_column).nanmean()

    def values(self, score: str | None = None, class_column: int | None = None) -> Tensor:
        """Return a score of every sample for bootstrapping, ``BT`` or ``B`` (one class); NaN where it isn't defined."""
        score = self.scores[0] if score is None else score
        if score not in self.scores:
            raise ValueError(f"expected a score of {self.scores}, got {score!r}")
        table = self._table()[..., self.scores.index(score)]
        return table if class_column is None else table[:, class_column]

    def undefined(self) -> dict[str, int]:
        """Count the entries of each score that are not defined."""
        missing = self._table().isnan().flatten(0, 1).sum(0).tolist()
        return dict(zip(self.scores, missing, strict=True))

    def _table(self) -> Tensor:
        buffer = self.get_buffer()  # type: ignore[no-untyped-call]
        if not isinstance(buffer, Tensor):
            raise ValueError("expected scores of at least one sample, got none")
        return buffer


def _share_of_brain(heatmap: Tensor, mask: Tensor, brain: Tensor | None) -> Tensor:
    region = checked_pair(heatmap, mask)[1]
    head = torch.ones_like(region) if brain is None else checked_pair(heatmap, brain)[1]
    size = (region & head).flatten(2).sum(2).float() / head.flatten(2).sum(2).clamp(min=1)
    return torch.where(size > 0, size, torch.nan)
