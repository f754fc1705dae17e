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

"""Calibration of a classifier: does it say 80 % where it is right in 80 % of the cases?"""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from monai.metrics.calibration import calibration_binning
from torch import Tensor

__all__ = ["TopLabelCalibration"]


class TopLabelCalibration(CumulativeIterationMetric):
    r"""Calibration errors of the predicted class over all cases, cumulated over batches and processes.

    MONAI's ``CalibrationErrorMetric`` bins the voxels of one image; a classifier has one prediction per case, so here
    the cases are binned, with the same binning. The confidence is the largest probability.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|, \qquad
              \mathrm{MCE} = \max_b |\mathrm{acc}_b - \mathrm{conf}_b|, \qquad
              \mathrm{Brier} = \frac1n \sum_i \sum_k (p_{ik} - y_{ik})^2

    All are 0 at best; ECE and MCE at most 1, Brier at most 2. With few cases ECE is biased upwards: compare methods on
    the same cases only.

    Args:
        bins: number of equal bins of the confidence, at least 1.

    Shape:
        - y_pred: probabilities ``BK``, rows sum to 1; y: class ``B``, long
        - output: ``B 3``: confidence, whether it was right, Brier score

    Raises:
        ValueError: When shapes don't match, rows are no probabilities, or a class is out of range.

    Reference:
        C. Guo et al., On calibration of modern neural networks, ICML 2017, Eq. 3 and 4; G. Brier, Monthly Weather
        Review 1950.

    Example:
        >>> metric = TopLabelCalibration(bins=5)
        >>> _ = metric(torch.tensor([[0.3, 0.7], [0.9, 0.1]]), torch.tensor([1, 1]))
        >>> round(float(metric.aggregate()), 3), round(float(metric.aggregate("brier")), 3)
        (0.6, 0.9)
    """

    def __init__(self, bins: int = 10) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        self.bins = bins

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if y is None or y_pred.ndim != 2 or y.shape != y_pred.shape[:1]:
            got = None if y is None else tuple(y.shape)
            raise ValueError(f"expected probabilities B K and classes B, got {tuple(y_pred.shape)} and {got}")
        probabilities = y_pred.float()
        if not bool(((probabilities >= 0) & (probabilities <= 1)).all()) or not torch.allclose(
            probabilities.sum(1), torch.ones_like(probabilities[:, 0]), atol=1e-3
        ):
            raise ValueError("expected rows of probabilities that sum to 1, apply softmax to logits")
        if y.is_floating_point() or int(y.min()) < 0 or int(y.max()) >= y_pred.shape[1]:
            raise ValueError(f"expected classes in 0..{y_pred.shape[1] - 1}, got {sorted(set(y.tolist()))}")
        confidence, predicted = probabilities.max(1)
        truth = torch.nn.functional.one_hot(y.long(), y_pred.shape[1])
        brier = ((probabilities - truth) ** 2).sum(1)
        return torch.stack([confidence, (predicted == y).float(), brier], dim=1)

    def aggregate(self, error: str = "ece") -> Tensor:
        """Return one error over all cases, a scalar.

        Args:
            error: ``"ece"``, ``"mce"`` or ``"brier"``.
        """
        if error not in ("ece", "mce", "brier"):
            raise ValueError(f"expected ece, mce or brier, got {error!r}")
        buffer = self.get_buffer()  # type: ignore[no-untyped-call]
        if not isinstance(buffer, Tensor):
            raise ValueError("expected predictions of at least one case, got none")
        if error == "brier":
            return buffer[:, 2].mean()
        first, second = (column.contiguous()[None, None] for column in buffer.T[:2])
        confidence, right, counts = calibration_binning(first, second, self.bins)
        gap = (confidence - right).abs().nan_to_num(0.0)
        return (gap * counts).sum() / counts.sum() if error == "ece" else gap.max()
