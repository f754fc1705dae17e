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
from monai.networks.nets import DenseNet, SegResNet
from torch import Tensor, nn

from monai_rrr.attribution import GradCAM, find_layers, record


def test_every_layer_found_can_be_explained() -> None:
    network = DenseNet(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)
    image = torch.rand(2, 1, 32, 32)
    found = find_layers(network, image)
    assert found["class_layers.relu"] == (16, 4, 4)
    assert "features.norm5" not in found  # overwritten by a ReLU in place
    assert "class_layers.pool" not in found  # one voxel
    trace = record(network, image, list(found))
    for name, shape in found.items():
        assert GradCAM(name)(trace, torch.tensor([0, 1])).shape == (2, 1, *shape[1:])


def test_nothing_is_touched() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.ReLU())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert list(find_layers(network, torch.rand(2, 1, 5, 5, 5))) == ["0", "1", "2"]
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(not module._forward_hooks for module in network.modules())
    with pytest.raises(RuntimeError, match="channels"):
        find_layers(network, torch.rand(2, 7, 5, 5, 5))
    assert all(not module._forward_hooks for module in network.modules())


def test_shared_and_skipped_layers_are_left_out() -> None:
    class Reuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.unused = nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Identity()

        def forward(self, image: Tensor) -> Tensor:
            return self.act(self.act(self.conv(image)))

    assert find_layers(Reuses(), torch.rand(1, 1, 2, 2)) == {"conv": (1, 2, 2)}


def test_segmentation_network() -> None:
    found = find_layers(SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)), torch.rand(1, 1, 8, 8, 8))
    assert found["down_layers.1"] == (16, 4, 4, 4)
