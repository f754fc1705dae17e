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

import pytest
import torch

from monai_rrr.losses.reduction import full_precision, weighted_mean


def test_value_broadcasts_the_weights():
    values, weights = torch.randn(3, 4), torch.rand(3, 1)
    expected = sum(float(values[i, j] * weights[i, 0]) for i in range(3) for j in range(4)) / float(4 * weights.sum())
    assert float(weighted_mean(values, weights)) == pytest.approx(expected, rel=1e-5)


def test_nan_of_weight_zero_does_not_count_in_value_or_gradient():
    values = torch.tensor([1.0, torch.nan, 3.0], requires_grad=True)
    found = weighted_mean(values, torch.tensor([True, False, True]))
    assert found == 2
    found.backward()
    assert values.grad.tolist() == [0.5, 0.0, 0.5]


def test_zero_weights_give_zero_with_a_zero_gradient():
    values = torch.randn(4, requires_grad=True)
    found = weighted_mean(values, torch.zeros(4))
    assert found == 0
    found.backward()
    assert values.grad.tolist() == [0.0] * 4


def test_full_precision():
    assert [full_precision(torch.zeros(1, dtype=t)).dtype for t in (torch.bfloat16, torch.float32, torch.float64)] == [
        torch.float32,
        torch.float32,
        torch.float64,
    ]
