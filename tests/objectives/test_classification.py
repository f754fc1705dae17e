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
from torch import Tensor, nn

from monai_rrr.attribution import Trace
from monai_rrr.objectives import Classification


def trace_of(logits: Tensor) -> Trace:
    return Trace(nn.Identity(), (), torch.zeros(len(logits), 1, 4), logits, {})


def test_class_indices() -> None:
    logits, label = torch.randn(4, 3), torch.tensor([2, 0, -1, 1])
    expected = F.cross_entropy(logits[[0, 1, 3]], label[[0, 1, 3]])
    torch.testing.assert_close(Classification()(trace_of(logits), {"class_label": label}), expected)


def test_tags() -> None:
    logits = torch.randn(2, 3)
    label = torch.tensor([[1.0, 0.0, torch.nan], [torch.nan, 1.0, 1.0]])
    known = ~label.isnan()
    expected = F.binary_cross_entropy_with_logits(logits[known], label[known])
    torch.testing.assert_close(Classification()(trace_of(logits), {"class_label": label}), expected)


@pytest.mark.parametrize("label", [torch.full((2,), -1), torch.full((2, 3), torch.nan)])
def test_nothing_known_is_exactly_zero(label: Tensor) -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    value = Classification()(trace_of(logits), {"class_label": label})
    value.backward()
    assert value == 0
    assert logits.grad.abs().max() == 0


def test_exception() -> None:
    with pytest.raises(ValueError, match=r"expected logits B K and class_label B or B K, got \(2, 3\) and \(2, 2\)"):
        Classification()(trace_of(torch.zeros(2, 3)), {"class_label": torch.zeros(2, 2)})
