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

"""Dice, HD95, ASSD and NSD per patient and region, with one stated rule for empty regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.metrics import (
    CumulativeIterationMetric,
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from monai.transforms import generate_spatial_bounding_box
from torch import Tensor

from monai_rrr.utils.enums import REGIONS

__all__ = ["SCORES", "RegionScores", "region_scores"]

SCORES: tuple[str, ...] = ("dice", "hd95", "assd")
NSD_MM = 2.0
_KNOWN = (*SCORES, "nsd")


def region_scores(
    pred: NdarrayOrTensor,
    truth: NdarrayOrTensor,
    spacing: Sequence[float],
    regions: Sequence[str] = REGIONS,
    scores: Sequence[str] = SCORES,
) -> dict[str, dict[str, float]]:
    """Dice, HD95 (mm) and ASSD (mm), or NSD, of every region of one patient.

    Dice is in [0, 1], larger is better, and so is NSD, the share of both surfaces that lies within 2 mm of the other
    one (normalized surface Dice); both distances are in mm, smaller is better. HD95 is the larger of the two
    directed 95th percentiles, ASSD the mean over the surface voxels of both masks; surface voxels are those with a
    background voxel, or the border of the image, beside one of their six faces.

    Args:
        pred: predicted regions, bool or 0/1.
        truth: true regions, bool or 0/1.
        spacing: voxel size in mm, one value per spatial axis.
        regions: names of the channels.
        scores: any of ``"dice"``, ``"hd95"``, ``"assd"``, ``"nsd"``. The surfaces cost most of the time.

    Shape:
        - pred, truth: ``RX[YZ]``, R regions.

    Returns:
        ``{region: {"dice": ..., "hd95": ..., "assd": ..., "both_empty": 0 or 1, "one_empty": 0 or 1}}``

    Raises:
        ValueError: When shapes, spacing or names do not fit, or when a mask holds NaN or anything but 0 and 1.

    Note:
        Rule for empty regions. Both masks empty: Dice and NSD 1, distances 0, since nothing was to be found and nothing
        was. Exactly one empty: Dice and NSD 0 and both distances the diagonal of the image in mm (number of voxels
        times spacing, 373.1 for a BraTS volume). The diagonal is longer than any distance between two masks, so a
        missed region is never better than a bad one, and finite, so no case is dropped from a mean. The two flags let a
        report count these cases.

    Example:
        >>> truth = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
        >>> truth[0, 2:4, 2:4, 2:4] = True
        >>> region_scores(truth.roll(1, dims=1), truth, (2.0, 1.0, 1.0), regions=["WT"], scores=["dice", "hd95"])
        {'WT': {'dice': 0.5, 'hd95': 2.0, 'both_empty': 0.0, 'one_empty': 0.0}}
    """
    prediction, reference = _as_mask(pred, "pred"), _as_mask(truth, "truth")
    spacing = _checked(prediction, reference, spacing, regions, scores)
    found = _scores_of_patient(prediction, reference, spacing, scores)
    names = (*scores, "both_empty", "one_empty")
    return {name: dict(zip(names, row, strict=True)) for name, row in zip(regions, found.tolist(), strict=True)}


class RegionScores(CumulativeIterationMetric):
    """Scores of :func:`region_scores` for every patient and region, cumulated over batches and processes.

    Works with MONAI's ``IgniteMetricHandler``: the buffer is a table with one row per patient and
    the columns of :attr:`columns`, and :meth:`aggregate` without arguments is one number, the mean of the first score
    over patients and regions, so that it can be a key metric. The rule for empty regions leaves no NaN anywhere.

    Args:
        spacing: voxel size in mm of all images. ``None`` reads it from the affine of ``MetaTensor`` truths.
        regions: names of the channels.
        scores: any of ``"dice"``, ``"hd95"``, ``"assd"``, ``"nsd"``; the first is the default of :meth:`aggregate`. The
            surfaces cost most of the time.

    Shape:
        - y_pred, y: ``BRX[YZ]``, or a list of ``RX[YZ]``, bool or 0/1.
        - output: ``B x len(columns)``

    Raises:
        ValueError: As :func:`region_scores`, and when no spacing is known.

    Example:
        >>> metric = RegionScores(spacing=(1.0, 1.0, 1.0), scores=["dice"])
        >>> mask = torch.ones(2, 3, 4, 4, 4, dtype=torch.bool)
        >>> _ = metric(mask, mask)
        >>> metric.aggregate()
        tensor(1.)
        >>> metric.summary()["WT"]
        {'dice': 1.0, 'both_empty': 0.0, 'one_empty': 0.0}
    """

    def __init__(
        self,
        spacing: Sequence[float] | None = None,
        regions: Sequence[str] = REGIONS,
        scores: Sequence[str] = SCORES,
    ) -> None:
        super().__init__()
        _check_scores(scores)
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)
        self.regions = tuple(regions)
        self.scores = tuple(scores)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the buffer, such as ``"WT_dice"``: ``class_labels`` of ``write_metrics_reports``."""
        return tuple(f"{region}_{name}" for region in self.regions for name in self._names)

    @property
    def _names(self) -> tuple[str, ...]:
        return (*self.scores, "both_empty", "one_empty")

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if y is None:
            raise ValueError("RegionScores expected prediction and truth, got no truth")
        spacings = self._spacings(y, kwargs.get("spacing"))
        rows = []
        for pred, truth, spacing in zip(y_pred, y, spacings, strict=True):
            prediction, reference = _as_mask(pred, "pred"), _as_mask(truth, "truth")
            voxel = _checked(prediction, reference, spacing, self.regions, self.scores)
            rows.append(_scores_of_patient(prediction, reference, voxel, self.scores).flatten())
        return torch.stack(rows).to(y_pred.device)

    def _spacings(self, y: Tensor, given: Sequence[float] | None) -> list[Sequence[float]]:
        spacing = self.spacing if given is None else given
        if spacing is not None:
            return [spacing] * len(y)
        if not isinstance(y, MetaTensor):
            raise ValueError(f"expected a spacing in mm or a MetaTensor as truth, got {type(y).__name__} alone")
        affines = y.affine.reshape(-1, *y.affine.shape[-2:]).expand(len(y), -1, -1)
        return [affine[:-1, :-1].norm(dim=0).tolist() for affine in affines]

    def aggregate(self, score: str | None = None, region: str | None = None) -> Tensor:
        """Mean over patients of one score (default: the first one) of one region (default: all regions).

        Args:
            score: one of the scores, ``"both_empty"`` or ``"one_empty"`` (then the mean is a share of cases).
            region: one of the regions.

        Returns:
            A scalar.
        """
        score = self.scores[0] if score is None else score
        if score not in self._names or region not in (None, *self.regions):
            raise ValueError(f"expected a score of {self._names} and a region of {self.regions}, got {score}, {region}")
        table = self._table()[:, :, self._names.index(score)]
        return table.mean() if region is None else table[:, self.regions.index(region)].mean()

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean over patients per region and score; ``both_empty`` and ``one_empty`` are counts of patients."""
        table = self._table()
        found = torch.cat([table[..., :-2].mean(dim=0), table[..., -2:].sum(dim=0)], dim=-1)
        return {
            region: dict(zip(self._names, row, strict=True))
            for region, row in zip(self.regions, found.tolist(), strict=True)
        }

    def _table(self) -> Tensor:
        buffer = self.get_buffer()  # type: ignore[no-untyped-call]
        if not isinstance(buffer, Tensor):
            raise ValueError("expected scores of at least one patient, got none")
        return buffer.reshape(len(buffer), len(self.regions), len(self._names))


def _as_mask(mask: NdarrayOrTensor, name: str) -> Tensor:
    values = torch.as_tensor(np.ascontiguousarray(mask) if isinstance(mask, np.ndarray) else mask).detach()
    if isinstance(values, MetaTensor):
        values = values.as_tensor()
    if values.dtype == torch.bool:
        return values.cpu()
    if values.is_floating_point() and bool(values.isnan().any()):
        raise ValueError(f"{name} expected 0 or 1 everywhere, got {int(values.isnan().sum())} NaN voxels")
    binary = values.bool()
    if not torch.equal(binary.to(values.dtype), values):
        raise ValueError(f"{name} expected 0 or 1 everywhere, got values from {values.min()} to {values.max()}")
    return binary.cpu()


def _check_scores(scores: Sequence[str]) -> None:
    if not scores or any(name not in _KNOWN for name in scores):
        raise ValueError(f"scores expected some of {_KNOWN}, got {tuple(scores)}")


def _checked(
    pred: Tensor, truth: Tensor, spacing: Sequence[float], regions: Sequence[str], scores: Sequence[str]
) -> tuple[float, ...]:
    _check_scores(scores)
    if pred.shape != truth.shape:
        raise ValueError(f"pred {tuple(pred.shape)} does not match truth {tuple(truth.shape)}")
    if len(pred) != len(regions):
        raise ValueError(f"expected one channel per region {tuple(regions)}, got masks of shape {tuple(pred.shape)}")
    voxel = tuple(float(s) for s in spacing)
    if len(voxel) != pred.ndim - 1 or not all(np.isfinite(s) and s > 0 for s in voxel):
        raise ValueError(f"spacing expected {pred.ndim - 1} positive values in mm, got {voxel}")
    return voxel


def _scores_of_patient(pred: Tensor, truth: Tensor, spacing: tuple[float, ...], scores: Sequence[str]) -> Tensor:
    diagonal = float(np.linalg.norm(np.multiply(pred.shape[1:], spacing)))
    # Nothing outside the box of all masks matters: beyond it is background, and a border counts as background.
    foreground = (pred | truth).any(dim=0, keepdim=True)
    if foreground.any():
        start, end = generate_spatial_bounding_box(foreground)
        box = (slice(None), *(slice(s, e) for s, e in zip(start, end, strict=True)))
        pred, truth = pred[box], truth[box]
    rows = [_scores_of_region(p, t, spacing, scores, diagonal) for p, t in zip(pred, truth, strict=True)]
    return torch.tensor(rows, dtype=torch.float32)


def _scores_of_region(
    pred: Tensor, truth: Tensor, spacing: tuple[float, ...], scores: Sequence[str], diagonal: float
) -> list[float]:
    has_pred, has_truth = bool(pred.any()), bool(truth.any())
    if not (has_pred and has_truth):
        both = not (has_pred or has_truth)
        found = [float(both) if name in ("dice", "nsd") else (0.0 if both else diagonal) for name in scores]
        return [*found, float(both), float(not both)]
    p, t = pred[None, None], truth[None, None]
    options: dict[str, Any] = {"include_background": True, "spacing": spacing}
    values = {
        "dice": lambda: compute_dice(p, t),
        "hd95": lambda: compute_hausdorff_distance(p, t, percentile=95, **options),
        "assd": lambda: compute_average_surface_distance(p, t, symmetric=True, **options),
        "nsd": lambda: compute_surface_dice(p, t, class_thresholds=[NSD_MM], **options),
    }
    return [*(float(values[name]()) for name in scores), 0.0, 0.0]
