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


from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_rrr.metrics import TopLabelCalibration


def draw() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 3, generator=generator) * 2
    return logits.softmax(1), torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def reference(probabilities: Tensor, classes: Tensor, bins: int) -> dict[str, float]:
    gaps, weights, brier = [], [], 0.0
    rows = list(zip(probabilities.tolist(), classes.tolist(), strict=True))
    for index in range(bins):
        inside = [(max(row), row.index(max(row)) == k) for row, k in rows if int(max(row) * bins) == index]
        if inside:
            gaps.append(abs(np.mean([c for c, _ in inside]) - np.mean([r for _, r in inside])))
            weights.append(len(inside))
    for row, k in rows:
        brier += sum((p - (index == k)) ** 2 for index, p in enumerate(row)) / len(rows)
    return {"ece": float(np.average(gaps, weights=weights)), "mce": max(gaps), "brier": brier}


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_equals_the_loop_over_batches(bins: int) -> None:
    probabilities, classes = draw()
    metric = TopLabelCalibration(bins)
    for start in range(0, 200, 64):
        metric(probabilities[start : start + 64], classes[start : start + 64])
    for name, value in reference(probabilities, classes, bins).items():
        assert float(metric.aggregate(name)) == pytest.approx(value, abs=1e-5)


def test_order() -> None:
    """Drawn from its own probabilities a classifier is calibrated; when it is surer than that, it is not."""
    probabilities, classes = draw()
    errors = []
    for power in (1, 3):
        sharp = probabilities**power
        metric = TopLabelCalibration()
        metric(sharp / sharp.sum(1, keepdim=True), classes)
        errors.append(float(metric.aggregate()))
    assert errors[0] < 0.08 < errors[1]


def test_perfect() -> None:
    metric = TopLabelCalibration()
    metric(torch.eye(3), torch.arange(3))
    assert [float(metric.aggregate(name)) for name in ("ece", "mce", "brier")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("probabilities", "classes", "message"),
    [
        (torch.ones(2, 3), torch.zeros(2).long(), "apply softmax to logits"),
        (torch.eye(2), torch.tensor([0, 2]), r"expected classes in 0..1, got \[0, 2\]"),
        (torch.eye(2), torch.tensor([0.0, 1.0]), r"expected classes in 0..1, got \[0.0, 1.0\]"),
        (torch.eye(2), torch.zeros(3).long(), r"expected probabilities B K and classes B, got \(2, 2\) and \(3,\)"),
    ],
)
def test_exception(probabilities: Tensor, classes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopLabelCalibration()(probabilities, classes)


def test_exception_of_the_aggregate() -> None:
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        TopLabelCalibration(0)
    with pytest.raises(ValueError, match="expected ece, mce or brier, got 'ace'"):
        TopLabelCalibration().aggregate("ace")
    with pytest.raises(ValueError, match="at least one case, got none"):
        TopLabelCalibration().aggregate()
