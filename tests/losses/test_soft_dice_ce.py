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

"""Dice and cross-entropy with soft targets, against a loop, and against MONAI's where that applies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor

from monai_rrr.losses import SoftDiceCELoss

N, C, SIZE = 3, 3, (4, 3, 2)


def case() -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(N, C, *SIZE, dtype=torch.float64)
    target = torch.randn(N, C, *SIZE, dtype=torch.float64).softmax(1)
    target[1, 2] = 0
    return logits, target, torch.rand(N, 1, *SIZE) > 0.3


def reference(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    p, t = logits.softmax(0)[:, mask], target[:, mask]
    entropy = -(t * p.log()).sum(0).mean()
    dice = [1 - (2 * (p[c] * t[c]).sum() + 1e-5) / ((p[c] + t[c]).sum() + 1e-5) for c in range(1, C) if t[c].sum() > 0]
    return entropy + torch.stack(dice).mean()


def test_value() -> None:
    logits, target, mask = case()
    found = SoftDiceCELoss(reduction="none")(logits, target, mask)
    for n in range(N):
        assert float(found[n]) == pytest.approx(float(reference(logits[n], target[n], mask[n, 0])))
    assert SoftDiceCELoss()(logits, target, mask) == pytest.approx(float(found.mean()))


@pytest.mark.parametrize("size", [SIZE, (5, 4), (6,)])
def test_as_monai_where_all_voxels_and_classes_are_there(size: tuple[int, ...]) -> None:
    logits = torch.randn(N, C, *size)
    label = torch.randint(0, C, (N, 1, *size))
    label.flatten(2)[..., :C] = torch.arange(C)
    target = F.one_hot(label[:, 0], C).movedim(-1, 1)
    expected = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)(logits, label)
    # MONAI leaves the background out of its cross-entropy, too
    expected = (
        expected
        - DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, lambda_dice=0.0)(logits, label)
        + F.cross_entropy(logits, label[:, 0])
    )
    assert torch.allclose(SoftDiceCELoss()(logits, target), expected, atol=1e-5)


def test_gradcheck() -> None:
    logits, target, mask = case()
    assert torch.autograd.gradcheck(lambda x: SoftDiceCELoss()(x, target, mask), logits.requires_grad_())


def test_zero() -> None:
    logits, target, mask = case()
    logits.requires_grad_()
    value = SoftDiceCELoss()(logits, target, torch.zeros_like(mask))
    value.backward()
    assert float(value.detach()) == 0
    assert float(logits.grad.abs().sum()) == 0
    assert bool(torch.isfinite(SoftDiceCELoss()(300 * logits.half(), target, mask)))


def test_exception() -> None:
    logits, target, mask = case()
    with pytest.raises(ValueError, match=r"target .* does not match logits"):
        SoftDiceCELoss()(logits, target[:, :2])
    with pytest.raises(ValueError, match=r"mask .* does not match logits"):
        SoftDiceCELoss()(logits, target, mask[:, 0])
