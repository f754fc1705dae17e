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
from torch import Tensor

from monai_rrr.losses import EvidenceLoss

KINDS = EvidenceLoss.kinds
SCALE_FREE = ("energy", "outside_square", "l1", "l2", "dice")


def slow(kind: str, heatmap: Tensor, allowed: Tensor, counts: Tensor) -> float:
    """Follow the equations, voxel by voxel."""
    voxels = [
        (h, m)
        for h, m, c in zip(heatmap.flatten().tolist(), allowed.flatten().tolist(), counts.flatten(), strict=True)
        if c
    ]
    outside = [h for h, m in voxels if m == 0]
    if kind == "outside_square":
        largest = max(abs(h) for h, _ in voxels)
        return sum((h / largest) ** 2 for h in outside)
    if kind == "outside_softplus":
        return sum(math.log1p(math.exp(h)) for h in outside) / len(outside)
    if kind == "outside_norm":
        return math.sqrt(sum(h * h for h in outside))
    positive = [max(h, 0.0) for h, _ in voxels]
    if kind == "energy":
        return 1 - sum(p for p, (_, m) in zip(positive, voxels, strict=True) if m) / sum(positive)
    pairs = [(p / max(positive), m) for p, (_, m) in zip(positive, voxels, strict=True)]
    if kind == "dice":
        return 1 - 2 * sum(u * m for u, m in pairs) / sum(u + m for u, m in pairs)
    return sum(abs(u - m) if kind == "l1" else (u - m) ** 2 for u, m in pairs) / len(pairs)


def example(shape: tuple[int, ...] = (2, 3, 3, 4, 2)) -> tuple[Tensor, Tensor, Tensor]:
    heatmap = torch.randn(shape, dtype=torch.float64)
    return heatmap, (torch.rand(shape) > 0.5).double(), (torch.rand(shape[0], 1, *shape[2:]) > 0.3).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 2, 4, 5), (2, 3, 3, 4, 2), (2, 1, 4, 3, 2, 2)])
def test_value(kind: str, shape: tuple[int, ...]) -> None:
    heatmap, allowed, counts = example(shape)
    found = EvidenceLoss(kind, reduction="none")(heatmap, allowed, counts)
    assert found.shape == shape[:2]
    for b in range(shape[0]):
        for t in range(shape[1]):
            assert float(found[b, t]) == pytest.approx(slow(kind, heatmap[b, t], allowed[b, t], counts[b, 0]), rel=1e-6)
    torch.testing.assert_close(EvidenceLoss(kind)(heatmap, allowed, counts), found.mean())
    torch.testing.assert_close(EvidenceLoss(kind, reduction="sum")(heatmap, allowed, counts), found.sum())


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "outside_softplus"])
def test_zero_at_the_optimum(kind: str) -> None:
    allowed = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    assert float(EvidenceLoss(kind)(3 * allowed, allowed)) == pytest.approx(0.0, abs=1e-6)
    assert EvidenceLoss(kind)(3 * (1 - allowed), allowed) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_scale(kind: str) -> None:
    heatmap, allowed, counts = example()
    same = torch.allclose(
        EvidenceLoss(kind)(heatmap, allowed, counts), EvidenceLoss(kind)(100 * heatmap, allowed, counts)
    )
    assert same == (kind in SCALE_FREE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("allowed", [0.0, 1.0])
@pytest.mark.parametrize("heatmap", [0.0, -1.0])
def test_degenerate_maps_and_masks_are_finite(kind: str, heatmap: float, allowed: float) -> None:
    leaf = torch.full((2, 2, 5), heatmap, requires_grad=True)
    for counts in (None, torch.zeros(2, 1, 5)):
        value = EvidenceLoss(kind)(leaf, torch.full((2, 1, 5), allowed), counts)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


def test_softplus_rewards_evidence_against_the_class_outside() -> None:
    allowed = torch.zeros(1, 1, 3)
    values = [float(EvidenceLoss("outside_softplus")(torch.full((1, 1, 3), h), allowed)) for h in (0.0, -5.0)]
    assert values[0] == pytest.approx(math.log(2))
    assert values[1] < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_with_constant_maxima(kind: str) -> None:
    """Maxima carry no gradient: with the largest value held elsewhere, the gradient is that of finite differences."""
    heatmap, allowed, _ = example((1, 2, 3, 3))
    heatmap = heatmap.clamp(-2, 2)
    largest = torch.full((1, 2, 1, 3), 5.0, dtype=torch.float64)
    heatmap = heatmap.requires_grad_(True)
    allowed = torch.cat([allowed, torch.ones_like(largest)], 2)
    assert torch.autograd.gradcheck(
        lambda h: EvidenceLoss(kind, reduction="none")(torch.cat([h, largest], 2), allowed), (heatmap,)
    )


@pytest.mark.parametrize("kind", ["l1", "l2", "dice", "outside_square"])
def test_no_gradient_through_the_maximum(kind: str) -> None:
    leaf = torch.tensor([[[1.0, 4.0]]], requires_grad=True)
    inside = torch.tensor([[[0.0, 1.0]]])
    EvidenceLoss(kind)(leaf, inside).backward()
    free = leaf.detach().clone().requires_grad_(True)
    ratio = free / 4.0
    {
        "l1": lambda: (ratio - inside).abs().mean(),
        "l2": lambda: (ratio - inside).square().mean(),
        "dice": lambda: 1 - 2 * (ratio * inside).sum() / (ratio.sum() + inside.sum()),
        "outside_square": lambda: (ratio * (1 - inside)).square().sum(),
    }[kind]().backward()
    torch.testing.assert_close(leaf.grad, free.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    heatmap, allowed, counts = example((2, 2, 4, 3))
    pads = (1, 2, 0, 3)
    padded = [F.pad(heatmap, pads, value=9.0), F.pad(allowed, pads), F.pad(counts, pads)]
    torch.testing.assert_close(EvidenceLoss(kind)(*padded), EvidenceLoss(kind)(heatmap, allowed, counts))


def test_energy_of_a_map_below_the_floor_pulls_into_the_mask() -> None:
    leaf = torch.full((1, 1, 4), 1e-9, requires_grad=True)
    EvidenceLoss("energy")(leaf, torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])).backward()
    assert leaf.grad.flatten().tolist() == [-1.0, 0.0, 0.0, 0.0]


def test_modalities_have_masks_of_their_own() -> None:
    heatmap = torch.tensor([[[[3.0, 0.0], [0.0, 1.0]]]])
    allowed = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    assert float(EvidenceLoss("energy")(heatmap, allowed)) == pytest.approx(0.25)
    assert float(EvidenceLoss("energy")(heatmap, allowed[:, :, :1])) == pytest.approx(0.25)


def test_half_precision_is_summed_in_float32() -> None:
    heatmap = torch.rand(1, 1, 5000).bfloat16()
    assert EvidenceLoss("energy")(heatmap, torch.ones(1, 1, 1)).dtype == torch.float32


def test_exception() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'epg'"):
        EvidenceLoss("epg")
    with pytest.raises(ValueError, match=r"floor must be positive, got 0\.0"):
        EvidenceLoss(floor=0.0)
    with pytest.raises(ValueError, match=r"evidence mask \(1, 1, 5\) does not match heatmap \(1, 2, 4\)"):
        EvidenceLoss()(torch.zeros(1, 2, 4), torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match=r"mask \(2, 1, 4\) does not match heatmap \(1, 2, 4\)"):
        EvidenceLoss()(torch.zeros(1, 2, 4), torch.zeros(1, 1, 4), torch.zeros(2, 1, 4))
