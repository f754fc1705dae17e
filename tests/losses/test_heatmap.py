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
import torch.nn.functional as F

from monai_rrr.losses import HeatmapDistanceLoss

KINDS = HeatmapDistanceLoss.kinds
SHAPES = [(1, 2, 7, 5), (2, 3, 4, 5, 6)]


def slow(kind, a, b, mask):
    pairs = [(x, y) for x, y, m in zip(a.flatten().tolist(), b.flatten().tolist(), mask.flatten(), strict=True) if m]
    square_a, square_b = sum(x * x for x, _ in pairs), sum(y * y for _, y in pairs)
    difference = sum((x - y) ** 2 for x, y in pairs)
    if kind == "relative":
        return difference / (square_a + square_b)
    if kind == "mean_square":
        return difference / len(pairs)
    distance = 1 - sum(x * y for x, y in pairs) / math.sqrt(square_a * square_b)
    return distance if kind == "cosine" else 2 * distance / len(pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_smoke_and_shape(kind, shape):
    a, b = torch.rand(shape), torch.rand(shape)
    mask = torch.rand(shape[0], 1, *shape[2:]) > 0.5
    assert HeatmapDistanceLoss(kind)(a, b).shape == ()
    each = HeatmapDistanceLoss(kind, reduction="none")(a, b, mask)
    assert each.shape == shape[:2]
    torch.testing.assert_close(HeatmapDistanceLoss(kind, reduction="sum")(a, b, mask), each.sum())
    torch.testing.assert_close(HeatmapDistanceLoss(kind)(a, b, mask), each.mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_value(kind, channels):
    a, b = torch.rand(2, 3, 3, 4, 2, dtype=torch.float64), torch.rand(2, 3, 3, 4, 2, dtype=torch.float64)
    mask = torch.rand(2, channels, 3, 4, 2) > 0.3
    found = HeatmapDistanceLoss(kind, reduction="none")(a, b, mask)
    for n in range(2):
        for t in range(3):
            expected = slow(kind, a[n, t], b[n, t], mask[n, min(t, channels - 1)])
            assert float(found[n, t]) == pytest.approx(expected, rel=1e-9)


def test_distance_of_unit_maps_is_twice_the_cosine_distance():
    p, q = torch.rand(1, 1, 50, dtype=torch.float64), torch.rand(1, 1, 50, dtype=torch.float64)
    squared = (p / p.norm() - q / q.norm()).square().sum()
    torch.testing.assert_close(squared, 2 * HeatmapDistanceLoss("cosine")(p, q))
    torch.testing.assert_close(squared / 50, HeatmapDistanceLoss("mean_cosine")(p, q))


@pytest.mark.parametrize("kind", ["relative", "cosine"])
def test_range_and_extremes(kind):
    loss = HeatmapDistanceLoss(kind, reduction="none")
    value = loss(torch.rand(20, 3, 30) ** 4, torch.rand(20, 3, 30) ** 4)
    assert (value >= -1e-6).all()
    assert (value <= 1 + 1e-6).all()
    a = torch.tensor([[[1.0, 2.0, 0.0, 0.0]]])
    assert float(loss(a, a)) == pytest.approx(0.0, abs=1e-6)
    assert float(loss(a, a.flip(2))) == pytest.approx(1.0)


def test_cosine_ignores_amplitude_and_relative_does_not():
    a = torch.rand(1, 1, 10)
    assert float(HeatmapDistanceLoss("cosine")(0.2 * a, a)) == pytest.approx(0.0, abs=1e-6)
    assert float(HeatmapDistanceLoss("relative")(0.5 * a, a)) == pytest.approx(0.25 / 1.25)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    a, b = torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 4)
    mask = torch.ones(1, 1, 5, 4, dtype=torch.bool)
    loss = HeatmapDistanceLoss(kind)
    pads = (2, 0, 1, 3)
    torch.testing.assert_close(loss(F.pad(a, pads, value=9.0), F.pad(b, pads), F.pad(mask, pads)), loss(a, b, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_reaches_both_sides(kind):
    a = torch.rand(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    b = torch.rand(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([1.0, 1.0, 0.0]).bool()[None, None, :, None].expand(2, 1, 3, 2)
    assert torch.autograd.gradcheck(lambda x, y: HeatmapDistanceLoss(kind)(x, y, mask), (a, b))
    HeatmapDistanceLoss(kind)(a, b, mask).backward()
    assert a.grad[:, :, :2].abs().min() > 0
    assert b.grad[:, :, :2].abs().min() > 0
    assert a.grad[:, :, 2].abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_zero(kind):
    zero, other = torch.zeros(1, 1, 6, requires_grad=True), torch.rand(1, 1, 6)
    loss = HeatmapDistanceLoss(kind)
    assert loss(zero, torch.zeros(1, 1, 6)) == 0
    assert loss(other, other.flip(2), torch.zeros(1, 1, 6).bool()) == 0
    if kind in ("relative", "cosine"):
        assert float(loss(zero, other).detach()) == pytest.approx(1.0)
    value = loss(zero, zero * 1) + loss(zero, other)
    value.backward()
    assert torch.isfinite(zero.grad).all()


def test_half_precision_is_compared_in_float32():
    a, b = torch.rand(1, 1, 5000).bfloat16(), torch.rand(1, 1, 5000).bfloat16()
    found = HeatmapDistanceLoss()(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), HeatmapDistanceLoss()(a.double(), b.double()))


def test_exception():
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'l1'"):
        HeatmapDistanceLoss("l1")
    with pytest.raises(ValueError, match=r"eps must be positive, got 0\.0"):
        HeatmapDistanceLoss(eps=0.0)
    with pytest.raises(ValueError, match=r"heatmap \(1, 1, 4\) does not match heatmap \(1, 1, 5\)"):
        HeatmapDistanceLoss()(torch.zeros(1, 1, 4), torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match=r"mask \(1, 1, 5\) does not match heatmap \(1, 2, 4\)"):
        HeatmapDistanceLoss()(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match=r"mask \(1, 1, 4\) does not match heatmap \(2, 2, 4\)"):
        HeatmapDistanceLoss()(torch.zeros(2, 2, 4), torch.zeros(2, 2, 4), torch.zeros(1, 1, 4))
