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

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import resnet18
from torch import Tensor, nn

from monai_rrr.attribution import GuidedBackprop, record
from monai_rrr.attribution.rules import guided_rectifiers


def chain(rectifier: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [nn.Conv2d(2, 4, 3), rectifier(), nn.Conv2d(4, 4, 3), rectifier(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("rectifier", [nn.ReLU, lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.3), nn.PReLU])
def test_value_is_the_hand_written_chain(rectifier: Callable[[], nn.Module]) -> None:
    network, image, classes = chain(rectifier), torch.randn(2, 2, 6, 6, dtype=torch.float64), torch.tensor([2, 0])
    found = GuidedBackprop(per_modality=True)(record(network, image, []), classes).detach()
    for sample in range(2):
        first = network[0](image[sample : sample + 1]).detach()
        second = network[2](network[1](first.clone())).detach()
        gradient = network[5].weight[classes[sample]].view(1, 4, 2, 2)
        for before, conv, act in ((second, network[2], network[3]), (first, network[0], network[1])):
            leaf = before.clone().requires_grad_(True)
            slope = torch.autograd.grad(act(leaf.clone()).sum(), leaf)[0]
            gradient = F.conv_transpose2d(gradient.clamp(min=0) * slope, conv.weight)
        torch.testing.assert_close(found[sample, 0], gradient[0].abs().detach())


def test_modalities_sum_to_the_map_without_their_axis() -> None:
    trace = record(chain(), torch.randn(2, 2, 6, 6, dtype=torch.float64), [])
    classes = torch.tensor([[0, 1], [2, 2]])
    torch.testing.assert_close(
        GuidedBackprop(per_modality=True)(trace, classes).sum(2), GuidedBackprop()(trace, classes)
    )


def test_differs_from_the_plain_gradient_and_leaves_training_alone() -> None:
    """Two losses on one network: the heatmap's own pass follows the rule, the pass of the trace does not."""
    network, image = chain(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    trace = record(network, image, [])
    expected = torch.autograd.grad(network(image).square().sum(), network[0].weight)[0]
    heatmap = GuidedBackprop()(trace, torch.tensor([0, 1]))
    leaf = image.clone().requires_grad_(True)
    plain = torch.autograd.grad(network(leaf)[[0, 1], [0, 1]].sum(), leaf)[0].abs().sum(1)
    assert (heatmap[:, 0] - plain).abs().max() > 1e-3
    (trace.logits.square().sum() + 0 * heatmap.sum()).backward()
    torch.testing.assert_close(network[0].weight.grad, expected)


def test_rule_is_off_after_an_exception() -> None:
    rule = guided_rectifiers()

    def fail() -> None:
        with rule.applied():
            assert rule.on
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not rule.on


def test_network_of_monai_stays_as_it_was() -> None:
    network = resnet18(spatial_dims=2, n_input_channels=1, num_classes=3)
    modules = {name: (id(module), module.training) for name, module in network.named_modules()}
    assert network.act.inplace
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    trace = record(network, torch.rand(2, 1, 32, 32), [], update_statistics=False)
    heatmap = GuidedBackprop()(trace, torch.tensor([0, 1]))
    assert heatmap.shape == (2, 1, 32, 32)
    assert heatmap.abs().sum() > 0
    heatmap.square().sum().backward()
    assert {name: (id(module), module.training) for name, module in network.named_modules()} == modules
    assert network.act.inplace
    assert all(torch.equal(value, buffers[name]) for name, value in network.named_buffers())


def test_network_without_rectifiers_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.LazyLinear(3))
    network(torch.rand(1, 1, 5, 5))
    with pytest.raises(ValueError, match=r"expected a network that calls ReLU, .* found none"):
        GuidedBackprop()(record(network, torch.rand(1, 1, 5, 5), []), torch.tensor([0]))


def test_slices_of_the_score_reach_only_their_sample() -> None:
    trace = record(chain(), torch.randn(2, 2, 6, 6, dtype=torch.float64), [])
    both = GuidedBackprop()(trace, torch.tensor([0, 1]))
    alone = GuidedBackprop()(record(trace.network, trace.image[1:], []), torch.tensor([1]))
    torch.testing.assert_close(both[1:], alone)
    assert isinstance(both, Tensor)
