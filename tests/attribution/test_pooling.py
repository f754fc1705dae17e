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

from monai_rrr.attribution.pooling import masked_log_mean_exp


def slow(values, inside, r):
    """``z = 1/r log(1/|brain| sum_{x in brain} exp(r s(x)))``, one score."""
    kept = [float(v) for v, i in zip(values.flatten(), inside.flatten(), strict=True) if i]
    return math.log(sum(math.exp(r * v) for v in kept) / len(kept)) / r


@pytest.mark.parametrize("r", [0.5, 5.0])
def test_value(r):
    maps = torch.randn(2, 4, 3, 4, 3, 2, dtype=torch.float64)
    mask = torch.rand(2, 1, 1, 4, 3, 2) > 0.4
    found = masked_log_mean_exp(maps, mask, [3, 4, 5], r)
    assert found.shape == (2, 4, 3)
    for b in range(2):
        for m in range(4):
            for k in range(3):
                assert float(found[b, m, k]) == pytest.approx(slow(maps[b, m, k], mask[b, 0, 0], r), abs=1e-12)
    per_slice = masked_log_mean_exp(maps, mask, [3, 4], r)
    assert float(per_slice[1, 2, 0, 1]) == pytest.approx(slow(maps[1, 2, 0, ..., 1], mask[1, 0, 0, ..., 1], r))


def test_between_mean_and_maximum_and_the_dilution_of_a_lesion():
    maps = torch.randn(5, 200)
    mask = torch.rand(5, 200) > 0.5
    mean = (maps * mask).sum(1) / mask.sum(1)
    most = maps.masked_fill(~mask, -torch.inf).amax(1)
    soft, sharp = masked_log_mean_exp(maps, mask, [1], 1e-3), masked_log_mean_exp(maps, mask, [1], 1e3)
    found = masked_log_mean_exp(maps, mask, [1])
    assert (mean <= found).all()
    assert (found <= most).all()
    torch.testing.assert_close(soft, mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(sharp, most, atol=6e-3, rtol=0)
    lesion = torch.full((1, 1000), -20.0)
    lesion[0, 0] = 3.0
    expected = 3.0 - math.log(1000) / 5
    assert float(masked_log_mean_exp(lesion, torch.ones(1, 1000, dtype=torch.bool), [1])) == pytest.approx(expected)


def test_cropping_and_padding_outside_the_mask_change_nothing():
    maps = torch.randn(1, 1, 6, 6, 4)
    mask = torch.zeros(1, 1, 6, 6, 4, dtype=torch.bool)
    mask[..., 2:5, 1:4, 1:3] = True
    found = masked_log_mean_exp(maps, mask, [2, 3, 4])
    padded = masked_log_mean_exp(
        F.pad(maps, (1, 2, 3, 0, 0, 5), value=50.0), F.pad(mask, (1, 2, 3, 0, 0, 5)), [2, 3, 4]
    )
    cropped = masked_log_mean_exp(maps[..., 2:5, 1:4, 1:3], mask[..., 2:5, 1:4, 1:3], [2, 3, 4])
    torch.testing.assert_close(padded, found, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cropped, found, rtol=1e-6, atol=1e-6)


def test_gradcheck():
    maps = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[[True, True, False, True]], [[False] * 4]])
    assert torch.autograd.gradcheck(lambda x: masked_log_mean_exp(x, mask, [2]), (maps,))


def test_empty_mask_gives_zero_without_gradient():
    maps = torch.randn(2, 5, requires_grad=True)
    mask = torch.tensor([[False] * 5, [True] * 5])
    score = masked_log_mean_exp(maps, mask, [1])
    assert score[0] == 0
    score.sum().backward()
    assert torch.equal(maps.grad[0], torch.zeros(5))
    assert float(maps.grad[1].sum()) == pytest.approx(1.0)


def test_half_precision_is_pooled_in_float32():
    maps = torch.randn(1, 4000).bfloat16()
    found = masked_log_mean_exp(maps, torch.ones(1, 1, dtype=torch.bool), [1])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, masked_log_mean_exp(maps.double(), torch.ones(1, 1).bool(), [1]).float())


def test_exception():
    with pytest.raises(ValueError, match=r"sharpness must be positive, got 0\.0"):
        masked_log_mean_exp(torch.zeros(1, 2), torch.ones(1, 2).bool(), [1], 0.0)


def test_scripting_agrees():
    maps, mask = torch.randn(2, 3, 4), torch.rand(2, 1, 4) > 0.5
    scripted = torch.jit.script(masked_log_mean_exp)
    torch.testing.assert_close(scripted(maps, mask, [2]), masked_log_mean_exp(maps, mask, [2]))
