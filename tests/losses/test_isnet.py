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

import math

import pytest
import torch
from torch import Tensor

from monai_rrr.losses import ISNetLoss


def slow(
    relevance: Tensor, region: Tensor, counts: Tensor, decay: float | None, fraction: float
) -> tuple[float, float]:
    """Follow the equations for one sample and class, with a full sort: background and foreground part."""
    size = relevance.abs()
    inside = [float(v) for v, m, c in zip(size.flatten(), region.flatten(), counts.flatten(), strict=True) if m and c]
    mean = sum(inside) / len(inside) + 1e-10
    parts = []
    for values, allowed, seen in zip(size, region, counts, strict=True):
        outside = sorted(
            (
                float(v) / mean
                for v, m, c in zip(values.flatten(), allowed.flatten(), seen.flatten(), strict=True)
                if c and not m
            ),
            reverse=True,
        )
        d = decay if decay is not None else 1 - 1 / max(1.0, fraction * len(outside))
        weights = [d**i for i in range(len(outside))]
        b = sum(w * v for w, v in zip(weights, outside, strict=True)) / sum(weights)
        parts.append(-math.log(1 - min(b / (b + 1), 1 - 1e-7)))
    total = sum(inside)
    foreground = (min(total, 1) - 1) ** 2 + (max(total, 25) - 25) ** 2
    return sum(parts) / len(parts), foreground


@pytest.mark.parametrize("decay", [None, 0.9, 0.0])
@pytest.mark.parametrize("scale", [0.001, 1.0, 3.0])
def test_value(decay: float | None, scale: float) -> None:
    relevance = scale * torch.randn(2, 3, 2, 6, 5, 4, dtype=torch.float64)
    region = (torch.rand(relevance.shape) > 0.7).double()
    counts = (torch.rand(2, 1, 2, 6, 5, 4) > 0.2).double()
    found = ISNetLoss(fraction=0.1, decay=decay, reduction="none")(relevance, region, counts)
    assert found.shape == (2, 3)
    for b in range(2):
        for t in range(3):
            background, foreground = slow(relevance[b, t], region[b, t], counts[b, 0], decay, 0.1)
            assert float(found[b, t]) == pytest.approx(background + 3 * foreground, rel=2e-4)


def test_ranking_by_the_largest_is_that_of_a_full_sort() -> None:
    values, outside = torch.rand(1, 1, 1, 4000, dtype=torch.float64), torch.ones(1, 1, 1, 4000, dtype=torch.float64)
    loss = ISNetLoss(fraction=0.01)
    ordered = values.flatten().sort(descending=True).values
    weights = (1 - 1 / 40) ** torch.arange(4000)
    full = (ordered * weights).sum() / weights.sum()
    torch.testing.assert_close(loss.ranked_mean(values, outside).flatten()[0], full, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("total", "expected"), [(1.0, 0.0), (10.0, 0.0), (25.0, 0.0), (0.25, 0.5625), (30.0, 25.0)])
def test_foreground_is_free_within_its_range(total: float, expected: float) -> None:
    relevance = torch.zeros(1, 1, 1, 8)
    relevance[..., :2] = total / 2
    region = (relevance > 0).float()
    assert float(ISNetLoss(foreground=1.0)(relevance, region)) == pytest.approx(expected, abs=1e-4)


def test_background_part_does_not_depend_on_the_scale() -> None:
    relevance, region = torch.randn(1, 2, 1, 5, 5, dtype=torch.float64), torch.zeros(1, 1, 1, 5, 5)
    region[..., :2] = 1
    loss = ISNetLoss(foreground=0.0)
    torch.testing.assert_close(loss(relevance, region), loss(1000 * relevance, region))


@pytest.mark.parametrize("value", [0.0, 1e6])
def test_finite(value: float) -> None:
    for allowed in (0.0, 1.0):
        leaf = torch.full((1, 1, 2, 4), value, requires_grad=True)
        found = ISNetLoss()(leaf, torch.full((1, 1, 1, 4), allowed))
        found.backward()
        assert found.isfinite()
        assert leaf.grad.isfinite().all()


def test_gradcheck() -> None:
    relevance = torch.randn(1, 2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    region = torch.zeros(1, 1, 1, 4, 3)
    region[..., 1:3, 1] = 1
    assert torch.autograd.gradcheck(lambda r: ISNetLoss(fraction=0.3, reduction="none")(r, region), (relevance,))


def test_exception() -> None:
    with pytest.raises(ValueError, match=r"expected fraction in \(0, 1\] and decay in \[0, 1\), got 0\.0 and None"):
        ISNetLoss(fraction=0.0)
    with pytest.raises(ValueError, match=r"0 < C1 <= C2, got 1\.0, 3\.0 and \(2, 1\)"):
        ISNetLoss(bounds=(2, 1))
    with pytest.raises(ValueError, match=r"expected relevance of shape B T M H \[W D\], got \(1, 1, 4\)"):
        ISNetLoss()(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
