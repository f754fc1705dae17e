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
from torch import nn

from monai_rrr.attribution import ClassMap, Trace


def trace_of(maps: torch.Tensor) -> Trace:
    return Trace(nn.Identity(), ("class_maps",), torch.zeros(2, 4, 6, 5, 3), torch.zeros(2, 3), {"class_maps": maps})


def test_without_classes_it_is_the_layer() -> None:
    maps = torch.rand(2, 3, 6, 5, 3)
    assert ClassMap()(trace_of(maps)) is maps


def test_classes_are_picked_by_sample() -> None:
    maps = torch.rand(2, 3, 6, 5, 3)
    picked = ClassMap()(trace_of(maps), torch.tensor([[2, 0], [1, 1]]))
    assert torch.equal(picked, torch.stack([maps[0, [2, 0]], maps[1, [1, 1]]]))
    assert torch.equal(ClassMap()(trace_of(maps), torch.tensor([2, 0])), torch.stack([maps[0, 2:], maps[1, :1]]))


def test_modality_axis_follows_the_classes() -> None:
    maps = torch.rand(2, 4, 3, 3, 3, 3)
    picked = ClassMap()(trace_of(maps), torch.tensor([[2, 0], [1, 1]]))
    assert picked.shape == (2, 2, 4, 3, 3, 3)
    assert torch.equal(picked[0, 1], maps[0, :, 0])


def test_class_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"class_idx must be in 0\.\.2, got \[3\]"):
        ClassMap()(trace_of(torch.rand(2, 3, 6, 5, 3)), torch.tensor([3, 3]))
