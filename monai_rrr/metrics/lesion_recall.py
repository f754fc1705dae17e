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

"""Which lesions were found, by size: what Dice can't see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from scipy import ndimage
from torch import Tensor

__all__ = ["SIZES_MM3", "LesionRecall", "found_lesions"]

SIZES_MM3: tuple[float, ...] = (50.0, 150.0, 1000.0)
"""Limits of the size classes: below 50, 50 to 150, 150 to 1000, and from 1000 mm3."""


def found_lesions(pred: Any, truth: Any, spacing: Sequence[float], overlap: float = 0.0) -> list[tuple[float, bool]]:
    """List the lesions of a true mask with their size in mm3 and whether the prediction has them.

    A lesion is a component of the true mask (voxels that touch by a face, an edge or a corner). It is found when more
    than the given share of it is in the prediction.

    Args:
        pred: predicted mask, 0/1.
        truth: true mask, 0/1.
        spacing: voxel size in mm.
        overlap: share of a lesion, in [0, 1), that must be exceeded; 0: one voxel is enough.

    Shape:
        - pred, truth: ``X[YZ]``

    Raises:
        ValueError: When shapes or spacing don't match, or the overlap is out of range.

    Example:
        >>> truth = np.array([1, 1, 0, 0, 1])
        >>> found_lesions(np.array([0, 1, 0, 0, 0]), truth, [2.0])
        [(4.0, True), (2.0, False)]
    """
    prediction, reference = np.asarray(pred) > 0.5, np.asarray(truth) > 0.5
    if prediction.shape != reference.shape or len(spacing) != reference.ndim:
        message = f"pred {prediction.shape}, truth {reference.shape} and spacing of {len(spacing)} axes do not match"
        raise ValueError(message)
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")
    lesions, count = ndimage.label(reference, np.ones((3,) * reference.ndim))
    sizes = np.bincount(lesions.ravel(), minlength=count + 1)[1:]
    hits = np.bincount(lesions[prediction], minlength=count + 1)[1:]
    volume = float(np.prod(spacing))
    return [(float(size * volume), bool(hit > overlap * size)) for size, hit in zip(sizes, hits, strict=True)]


class LesionRecall(CumulativeIterationMetric):
    """Share of the lesions that were found, by size class, cumulated over cases and processes.

    Lesions count alike, whichever case they are from. A size class without any lesion has no recall (NaN).

    Args:
        spacing: voxel size in mm of all images.
        sizes_mm3: limits between size classes, ascending.
        overlap: see :func:`found_lesions`.

    Shape:
        - y_pred, y: ``BKX[YZ]``, 0/1
        - buffer: ``B K (size classes) 2``: lesions found, lesions

    Raises:
        ValueError: When the limits don't ascend; and as :func:`found_lesions`.

    Example:
        >>> metric = LesionRecall((1.0, 1.0), sizes_mm3=[2.0])
        >>> truth = torch.tensor([[[[1, 0, 1], [0, 0, 1], [0, 0, 1]]]])
        >>> _ = metric(torch.tensor([[[[0, 0, 0], [0, 0, 1], [0, 0, 1]]]]), truth)
        >>> metric.aggregate().item(), metric.recall().tolist()
        (0.5, [[0.0, 1.0]])
    """

    def __init__(self, spacing: Sequence[float], sizes_mm3: Sequence[float] = SIZES_MM3, overlap: float = 0.0) -> None:
        super().__init__()
        if list(sizes_mm3) != sorted(set(sizes_mm3)):
            raise ValueError(f"expected ascending sizes in mm3, got {list(sizes_mm3)}")
        self.spacing, self.sizes_mm3, self.overlap = tuple(spacing), tuple(sizes_mm3), overlap

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if y is None or y.shape != y_pred.shape:
            raise ValueError(f"expected truths of the shape of the predictions, {tuple(y_pred.shape)}")
        table = torch.zeros(*y.shape[:2], len(self.sizes_mm3) + 1, 2)
        for sample, channel in np.ndindex(*y.shape[:2]):
            pred, truth = (mask[sample, channel].detach().cpu().numpy() for mask in (y_pred, y))
            for size, found in found_lesions(pred, truth, self.spacing, self.overlap):
                place = int(np.searchsorted(self.sizes_mm3, size, side="right"))
                table[sample, channel, place] += torch.tensor([float(found), 1.0])
        return table.to(y_pred.device)

    def aggregate(self, channel: int | None = None, size_class: int | None = None) -> Tensor:
        """Share of the lesions found, of one region and size class or of all; NaN when there are none.

        Args:
            channel: index of the region. None: all.
            size_class: index of the size class. None: all.

        Returns:
            A scalar.
        """
        counts = self.counts()
        counts = counts if channel is None else counts[channel : channel + 1]
        counts = counts if size_class is None else counts[:, size_class : size_class + 1]
        total = counts.sum((0, 1))
        return total[0] / total[1]

    def recall(self) -> Tensor:
        """Return the recall of every region and size class, ``K (size classes)``; NaN where there is no lesion."""
        counts = self.counts()
        return counts[..., 0] / counts[..., 1]

    def counts(self) -> Tensor:
        """Return lesions found and lesions, ``K (size classes) 2``."""
        buffer = self.get_buffer()  # type: ignore[no-untyped-call]
        if not isinstance(buffer, Tensor):
            raise ValueError("expected masks of at least one case, got none")
        return buffer.sum(0)
