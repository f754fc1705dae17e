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

from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.networks.nets import resnet10
from scipy.stats import spearmanr
from torch import Tensor, nn

from monai_rrr.attribution import GradCAM
from monai_rrr.inferers import heatmap_similarity, randomization_check, randomized_copies
from monai_rrr.inferers.heatmap import explain_image


def small() -> nn.Module:
    return resnet10(spatial_dims=3, n_input_channels=2, num_classes=2, widen_factor=0.125).eval()


def image() -> Tensor:
    return torch.rand(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))


def test_network_is_left_as_it_was() -> None:
    network = small()
    network.fc.weight.grad = torch.ones_like(network.fc.weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    randomization_check(network, image(), lambda net: explain_image(image(), net, GradCAM("layer2"), [1])[0], steps=2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not network.training
    assert bool((network.fc.weight.grad == 1).all())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_layers_go_from_the_top_down() -> None:
    network = small()
    copies = list(randomized_copies(network, image(), steps=4))
    assert [share for share, _ in copies][-1] == 1.0
    assert sorted(share for share, _ in copies) == [share for share, _ in copies]
    changed = [
        {name for name, value in other.named_parameters() if not torch.equal(value, network.get_parameter(name))}
        for _, other in copies
    ]
    assert all(first < second for first, second in pairwise(changed))
    assert "fc.weight" in changed[0]
    assert not any(name.startswith(("conv1", "layer1")) for name in changed[0])
    # norm layers start as ones and zeros, which no permutation changes
    learned = {name for name, value in network.named_parameters() if value.unique().numel() > 1}
    assert changed[-1] == learned
    for name, value in copies[-1][1].named_parameters():
        torch.testing.assert_close(value.flatten().sort().values, network.get_parameter(name).flatten().sort().values)


class Inner(nn.Module):
    """The parameter of a module that is used, but not called, as position embeddings can be."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Module()
        self.table.offset = nn.Parameter(torch.rand(2, 8, 1, 1))
        self.layer = nn.Conv3d(2, 2, 1)

    @property
    def offset(self) -> Tensor:
        return self.table.offset

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image + self.offset).mean((2, 3, 4))


def test_parameters_of_no_called_layer_are_randomized_too() -> None:
    network = Inner()
    _, last = next(randomized_copies(network, torch.rand(1, 2, 8, 8, 8), steps=1))
    assert not torch.equal(last.offset, network.offset)


def test_deterministic() -> None:
    def states(seed: int) -> list[Tensor]:
        copies = randomized_copies(network, torch.rand(1, 2, 8, 8, 8), steps=2, seed=seed)
        return [other.get_parameter("head.weight") for _, other in copies]

    network = nn.Sequential()
    network.add_module("features", nn.Conv3d(2, 8, 1))
    network.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten()))
    network.add_module("head", nn.Linear(8, 4))
    assert all(torch.equal(a, b) for a, b in zip(states(1), states(1), strict=True))
    assert not torch.equal(states(1)[0], states(2)[0])


class Spot(nn.Module):
    """Class 1 is the first channel, class 0 the second one; what the image shows elsewhere doesn't count."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv3d(2, 2, 1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]])[:, :, None, None, None])
            self.head.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).flatten(2).mean(2))


def test_learned_map_falls_and_edge_detector_does_not() -> None:
    network, data = Spot(), image()[..., :8, :8, :8]
    for seed in range(20):
        learned = randomization_check(
            network, data, lambda net: explain_image(data, net, GradCAM("features"), [1])[0], steps=2, seed=seed
        )
        if min(learned.values()) < 0.5:
            break
    else:
        raise AssertionError("the heatmap never changed")
    assert learned[0.0] == 1.0
    edges = randomization_check(network, data, lambda net: data.diff(dim=2), steps=2)
    assert set(edges.values()) == {1.0}


def test_similarity() -> None:
    first, second = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    expected = spearmanr(first.flatten(), second.flatten()).statistic
    assert heatmap_similarity(first, second) == pytest.approx(expected, abs=1e-6)
    brain = torch.rand(1, 3, 4, 5) > 0.5
    inside = np.broadcast_to(brain.numpy(), (2, 3, 4, 5))
    expected = spearmanr(first.numpy()[inside], second.numpy()[inside]).statistic
    assert heatmap_similarity(first, second, brain) == pytest.approx(expected, abs=1e-6)
    assert heatmap_similarity(first, -first) == -1.0
    assert heatmap_similarity(first, torch.zeros_like(first)) == 0.0
    assert heatmap_similarity(first, second, torch.zeros(1, 3, 4, 5)) == 0.0


def test_exception() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        next(randomized_copies(small(), image(), steps=0))
    with pytest.raises(ValueError, match="Identity has no layer with parameters"):
        next(randomized_copies(nn.Identity(), image()))
    with pytest.raises(ValueError, match=r"heatmap \(3,\) does not match the other one \(2,\)"):
        heatmap_similarity(torch.zeros(2), torch.zeros(3))
