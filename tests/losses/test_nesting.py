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
import torch.nn.functional as F

from monai_rrr.losses import NestingLoss


def slow(maps, mask):
    total, count = 0.0, 0
    for n in range(maps.shape[0]):
        for x in range(maps.shape[2]):
            if mask[n, 0, x]:
                count += 1
                total += sum(max(0.0, float(maps[n, c + 1, x] - maps[n, c, x])) for c in range(maps.shape[1] - 1))
    return total / max(count, 1)


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (2, 3, 4, 3, 2)])
def test_smoke_and_shape(shape):
    assert NestingLoss()(torch.rand(shape)).shape == ()


def test_value():
    maps, mask = torch.rand(2, 3, 9, dtype=torch.float64), torch.rand(2, 1, 9) > 0.4
    assert float(NestingLoss()(maps, mask)) == pytest.approx(slow(maps, mask))
    assert float(NestingLoss()(maps)) == pytest.approx(slow(maps, torch.ones(2, 1, 9)))


def test_nested_maps_are_free_and_the_bound_holds():
    maps = torch.rand(1, 3, 20).cumsum(1).flip(1)
    assert NestingLoss()(maps) == 0
    assert NestingLoss()(torch.tensor([[[0.0], [1.0], [0.0]]])) == 1
    assert NestingLoss()(torch.rand(4, 3, 50)) <= 2


def test_gradcheck():
    maps = torch.rand(1, 3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[[True, True, True, False, True]]])
    assert torch.autograd.gradcheck(lambda x: NestingLoss()(x, mask), (maps,))


def test_zero_and_padding():
    maps = torch.rand(1, 3, 5, requires_grad=True)
    empty = NestingLoss()(maps, torch.zeros(1, 1, 5).bool())
    assert empty == 0
    empty.backward()
    assert torch.equal(maps.grad, torch.zeros_like(maps))
    mask = torch.ones(1, 1, 5).bool()
    torch.testing.assert_close(NestingLoss()(F.pad(maps, (2, 1)), F.pad(mask, (2, 1))), NestingLoss()(maps, mask))


def test_exception():
    with pytest.raises(ValueError, match=r"at least 2 classes, got heatmap \(1, 1, 4\)"):
        NestingLoss()(torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match=r"mask \(1, 1, 5\) does not match heatmap \(1, 2, 4\)"):
        NestingLoss()(torch.zeros(1, 2, 4), torch.zeros(1, 1, 5))
