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

from monai_rrr.losses import MutualKLLoss


def softmax(z, t):
    e = [math.exp(v / t) for v in z]
    return [v / sum(e) for v in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("t", [1.0, 10.0])
def test_value(t):
    pupil, teacher = torch.randn(4, 3, dtype=torch.float64) * 3, torch.randn(4, 3, dtype=torch.float64) * 3
    found = MutualKLLoss(t, reduction="none")(pupil, teacher)
    assert found.shape == (4,)
    for n in range(4):
        expected = t**2 * kl(softmax(teacher[n].tolist(), t), softmax(pupil[n].tolist(), t))
        assert float(found[n]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    each = MutualKLLoss(t, bernoulli=True, reduction="none")(pupil, teacher)
    assert each.shape == (4, 3)
    for n in range(4):
        for k in range(3):
            p, q = (1 / (1 + math.exp(-float(z[n, k]) / t)) for z in (teacher, pupil))
            assert float(each[n, k]) == pytest.approx(t**2 * kl([p, 1 - p], [q, 1 - q]), rel=1e-6, abs=1e-9)


def test_bernoulli_is_the_softmax_over_a_logit_and_zero():
    pupil, teacher = torch.randn(5, 1), torch.randn(5, 1)
    two = [torch.cat([torch.zeros(5, 1), z], 1) for z in (pupil, teacher)]
    torch.testing.assert_close(MutualKLLoss(bernoulli=True)(pupil, teacher), MutualKLLoss()(*two))


def test_direction_teacher_first():
    sure, unsure = torch.tensor([[4.0, -4.0]]), torch.tensor([[0.5, -0.5]])
    one, two = MutualKLLoss(1.0)(sure, unsure), MutualKLLoss(1.0)(unsure, sure)
    expected = kl(softmax([0.5, -0.5], 1.0), softmax([4.0, -4.0], 1.0))
    assert float(one) == pytest.approx(expected, rel=1e-5)
    assert float(one) != pytest.approx(float(two), rel=0.1)


@pytest.mark.parametrize("bernoulli", [False, True])
def test_at_temperature_ten_it_is_an_eighth_of_the_squared_margin_difference(bernoulli):
    margin = torch.tensor([[2.0]])
    pupil, teacher = (torch.zeros(1, 1), margin) if bernoulli else (torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]))
    assert float(MutualKLLoss(10.0, bernoulli=bernoulli)(pupil, teacher)) == pytest.approx(4 / 8, rel=0.02)


@pytest.mark.parametrize("bernoulli", [False, True])
def test_gradcheck_and_the_teacher_gets_none(bernoulli):
    pupil = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    loss = MutualKLLoss(2.0, bernoulli=bernoulli)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher.detach()), (pupil,))
    loss(pupil, teacher).backward()
    assert teacher.grad is None
    assert pupil.grad.abs().max() > 0


@pytest.mark.parametrize("bernoulli", [False, True])
def test_zero_and_extreme_logits(bernoulli):
    z = torch.tensor([[200.0, -200.0, 0.0]])
    loss = MutualKLLoss(1.0, bernoulli=bernoulli)
    assert loss(z, z) == 0
    assert torch.isfinite(loss(z, -z))
    assert torch.isfinite(loss(-z, z))
    assert loss(torch.randn(50, 3), torch.randn(50, 3)) > 0


@pytest.mark.parametrize("shape", [(1, 2), (3, 4, 4, 2)])
def test_smoke_shape_and_reduction(shape):
    a, b = torch.randn(shape), torch.randn(shape)
    each = MutualKLLoss(reduction="none")(a, b)
    assert each.shape == shape[:-1]
    torch.testing.assert_close(MutualKLLoss()(a, b), each.mean())
    torch.testing.assert_close(MutualKLLoss(reduction="sum")(a, b), each.sum())


def test_exception():
    with pytest.raises(ValueError, match=r"temperature must be positive, got -1\.0"):
        MutualKLLoss(-1.0)
    with pytest.raises(ValueError, match=r"logits \(1, 2\) do not match logits \(1, 3\)"):
        MutualKLLoss()(torch.zeros(1, 2), torch.zeros(1, 3))
