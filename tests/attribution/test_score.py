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
from torch import Tensor

from monai_rrr.attribution import ClassScore, argmax_score, positive_score, volume_score

SCORES = [volume_score, argmax_score, positive_score]


def naive(logits: Tensor, sample: int, class_idx: int, rule: ClassScore) -> float:
    total = 0.0
    for voxel in logits[sample].flatten(1).T:
        counts = {
            volume_score: True,
            argmax_score: int(voxel.argmax()) == class_idx,
            positive_score: bool(voxel[class_idx] > 0),
        }[rule]
        total += float(voxel[class_idx]) if counts else 0.0
    return total


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("size", [(4, 3), (3, 4, 2)])
def test_value_over_voxels(score: ClassScore, size: tuple[int, ...]) -> None:
    logits, class_idx = torch.randn(2, 3, *size, dtype=torch.float64), torch.tensor([[0, 2], [1, 1]])
    found = score(logits, class_idx)
    expected = [[naive(logits, b, int(class_idx[b, t]), score) for t in range(2)] for b in range(2)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("score", SCORES)
def test_classification_logits(score: ClassScore) -> None:
    logits = torch.tensor([[-1.0, -2.0], [3.0, 4.0]])
    assert score(logits, torch.tensor([1, 0])).tolist() == [[-2.0], [3.0]]


@pytest.mark.parametrize("score", [argmax_score, positive_score])
def test_class_that_is_predicted_nowhere(score: ClassScore) -> None:
    logits = torch.cat([torch.ones(1, 1, 4, 4), -torch.ones(1, 1, 4, 4)], 1).requires_grad_(True)
    value = score(logits, torch.tensor([1]))
    assert value.tolist() == [[0.0]]
    assert torch.autograd.grad(value.sum(), logits)[0].abs().sum() == 0


@pytest.mark.parametrize("score", SCORES)
def test_exception(score: ClassScore) -> None:
    with pytest.raises(ValueError, match=r"class_idx must be in 0..1, got \[2\]"):
        score(torch.zeros(1, 2, 4, 4), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"expected logits of shape B K or B K H \[W D\], got \(2,\)"):
        score(torch.zeros(2), torch.tensor([0]))
