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
from statistics import correlation, fmean, pstdev

import pytest
import torch
import torch.nn.functional as F

from monai_rrr.losses import AttentionConsistencyLoss


def slow(first: list[float], second: list[float], squash: bool) -> float:
    def prepared(values: list[float]) -> list[float]:
        mean, deviation = fmean(values), pstdev(values)
        scaled = [(v - mean) / deviation for v in values]
        return [1 / (1 + math.exp(-v)) for v in scaled] if squash else scaled

    return 1 - correlation(prepared(first), prepared(second))


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("shape", [(2, 2, 5, 4), (2, 1, 3, 4, 3)])
def test_value_is_that_of_each_sample(squash: bool, shape: tuple[int, ...]) -> None:
    first, second = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    mask = torch.rand(shape[0], 1, *shape[2:]) > 0.3
    found = AttentionConsistencyLoss(squash, reduction="none")(first, second, mask)
    for b in range(shape[0]):
        for t in range(shape[1]):
            inside = mask[b, 0]
            expected = slow(first[b, t][inside].tolist(), second[b, t][inside].tolist(), squash)
            assert float(found[b, t]) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(AttentionConsistencyLoss(squash)(first, second, mask), found.mean())


def test_identities() -> None:
    first, second = torch.randn(3, 2, 6, 6, dtype=torch.float64), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    loss = AttentionConsistencyLoss()
    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(loss(first, first), zero, atol=1e-12, rtol=0)
    torch.testing.assert_close(loss(first, -first), zero + 2)
    torch.testing.assert_close(loss(first, second), loss(second, first))
    torch.testing.assert_close(loss(5 * first - 3, 0.1 * second + 7), loss(first, second))
    assert 0 <= loss(first, second) <= 2
    torch.testing.assert_close(loss(first.flip(0), second.flip(0)), loss(first, second))


def test_padding_changes_nothing() -> None:
    first, second, mask = torch.randn(2, 1, 5, 4), torch.randn(2, 1, 5, 4), torch.rand(2, 1, 5, 4) > 0.3
    pads = (0, 3, 2, 1)
    padded = AttentionConsistencyLoss()(F.pad(first, pads, value=9.0), F.pad(second, pads), F.pad(mask, pads))
    torch.testing.assert_close(padded, AttentionConsistencyLoss()(first, second, mask))


@pytest.mark.parametrize("level", [0.0, 0.3, -1e4])
def test_flat_map_costs_one_and_gets_no_gradient(level: float) -> None:
    flat = torch.full((1, 1, 7, 7, 7), level, requires_grad=True)
    other = torch.randn(1, 1, 7, 7, 7, requires_grad=True)
    for pair in ((flat, other), (other, flat), (flat, flat)):
        value = AttentionConsistencyLoss()(*pair)
        value.backward()
        assert value == 1
    assert flat.grad.abs().max() == 0
    assert other.grad.abs().max() == 0


def test_single_voxel_and_empty_masks() -> None:
    first, second = (torch.randn(2, 1, 4, 4).requires_grad_(True) for _ in range(2))
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, 1, 1] = 1
    each = AttentionConsistencyLoss(reduction="none")(first, second, mask)
    assert each.flatten().tolist() == [1.0, 0.0]
    value = AttentionConsistencyLoss()(first, second, mask)
    assert value == 1, "a sample without brain is left out"
    value.backward()
    assert first.grad.abs().max() == 0
    assert AttentionConsistencyLoss()(first, second, torch.zeros(2, 1, 4, 4)) == 0


@pytest.mark.parametrize("squash", [True, False])
def test_gradcheck_reaches_both(squash: bool) -> None:
    first, second = (torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.ones(2, 1, 3, 4)
    mask[1, 0, :2] = 0
    assert torch.autograd.gradcheck(lambda a, b: AttentionConsistencyLoss(squash)(a, b, mask), (first, second))


def test_exception() -> None:
    with pytest.raises(ValueError, match=r"heatmap \(1, 1, 4\) does not match heatmap \(1, 1, 5\)"):
        AttentionConsistencyLoss()(torch.zeros(1, 1, 4), torch.zeros(1, 1, 5))
