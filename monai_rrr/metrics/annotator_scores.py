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

"""Whether the prediction for an annotator is closer to that annotator than the consensus is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric, compute_dice
from torch import Tensor

from monai_rrr.utils.enums import REGIONS

__all__ = ["AnnotatorScores", "class_regions"]


def class_regions(classes: Tensor) -> Tensor:
    """Turn class maps into masks of WT, TC and ET, as a new axis before the spatial ones.

    Args:
        classes: 0 background, 1 NCR, 2 ED, 3 ET; -1 (not known) is in no region.

    Shape:
        - classes: ``...XYZ``; output: ``...3XYZ`` bool

    Example:
        >>> class_regions(torch.tensor([0, 1, 2, 3]).view(4, 1, 1)).int().flatten(1).tolist()
        [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    """
    plain = classes.as_tensor() if isinstance(classes, MetaTensor) else classes
    return torch.stack([plain > 0, (plain == 1) | (plain == 3), plain == 3], dim=-4)


class AnnotatorScores(CumulativeIterationMetric):
    r"""Dice of each annotator's own prediction, and what it gains over the consensus, cumulated over cases.

    .. math:: PG_r = \mathrm{Dice}(\hat{y}_r, y_r) - \mathrm{Dice}(\hat{y}_\text{consensus}, y_r)

    A gain of 0 means that the annotator's name tells the network nothing. It must vanish when names are shuffled from
    case to case. Both masks empty: Dice 1; one empty: 0. Who didn't draw a case is NaN there and in no mean.

    Args:
        annotators: ids, in the order of ``R``.
        regions: names of the channels ``K``.

    Shape:
        - y_pred, y: ``BRKX[YZ]``, 0/1
        - keyword arguments: ``consensus``, ``BKX[YZ]``, 0/1; ``annotated``, ``BR`` (default: all)
        - buffer: ``BRK2``: Dice, gain

    Raises:
        ValueError: When shapes don't match, or there is no consensus.

    Example:
        >>> metric = AnnotatorScores(["a1", "a2"], ["WT"])
        >>> masks = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).view(1, 2, 1, 4)
        >>> _ = metric(masks, masks, consensus=masks[:, 1])
        >>> metric.summary()["a1"]["WT"]
        {'dice': 1.0, 'gain': 0.5}
    """

    def __init__(self, annotators: Sequence[str], regions: Sequence[str] = REGIONS) -> None:
        super().__init__()
        self.annotators, self.regions = tuple(annotators), tuple(regions)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        consensus, annotated = kwargs.pop("consensus", None), kwargs.pop("annotated", None)
        if y is None or consensus is None or kwargs:
            raise ValueError("expected predictions, masks and the keyword arguments consensus and annotated")
        shape = (len(y), len(self.annotators), len(self.regions), *y.shape[3:])
        if y.shape != shape or y_pred.shape != shape or consensus.shape != (shape[0], *shape[2:]):
            got = [tuple(masks.shape) for masks in (y_pred, y, consensus)]
            raise ValueError(f"expected masks of shape {shape} and a consensus without the second axis, got {got}")
        same = consensus.unsqueeze(1).expand(shape)
        own, shared = (_dice(masks.flatten(0, 1), y.flatten(0, 1)).reshape(shape[:3]) for masks in (y_pred, same))
        table = torch.stack([own, own - shared], dim=-1)
        if annotated is None:
            return table
        return torch.where(annotated.bool()[..., None, None], table, torch.nan)

    def aggregate(self, score: str = "dice", annotator: str | None = None, region: str | None = None) -> Tensor:
        """Mean over cases of one score, of one annotator and region or of all; NaN when there are none.

        Args:
            score: ``"dice"`` or ``"gain"``.
            annotator: one of the ids.
            region: one of the regions.

        Returns:
            A scalar.
        """
        return self.values(score, annotator, region).nanmean()

    def values(self, score: str = "dice", annotator: str | None = None, region: str | None = None) -> Tensor:
        """Return a score of every case for bootstrapping: ``BRK``, without the axes that are chosen."""
        buffer = self.get_buffer()  # type: ignore[no-untyped-call]
        if not isinstance(buffer, Tensor):
            raise ValueError("expected scores of at least one case, got none")
        table = buffer[..., ("dice", "gain").index(score)]
        if region is not None:
            table = table[..., self.regions.index(region)]
        return table if annotator is None else table[:, self.annotators.index(annotator)]

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean over cases by annotator, region and score."""
        return {
            name: {
                region: {score: float(self.aggregate(score, name, region)) for score in ("dice", "gain")}
                for region in self.regions
            }
            for name in self.annotators
        }


def _dice(pred: Tensor, truth: Tensor) -> Tensor:
    found: Tensor = compute_dice(
        pred.detach().float(), truth.detach().float(), include_background=True, ignore_empty=False
    )
    return found.as_tensor() if isinstance(found, MetaTensor) else found
