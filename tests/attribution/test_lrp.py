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

"""LRP of whole networks: what it leaves alone, what it refuses, and how a user adds a rule."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.networks.nets import DenseNet, resnet18
from torch import Tensor, nn

from monai_rrr.attribution import Epsilon, Flat, LayerCall, LRPRules, UnrolledLRP, WSquare, ZPlus, record
from monai_rrr.inferers import HeatmapInferer

CLASSES = torch.tensor([[0, 2], [1, 1]])


def network() -> nn.Sequential:
    layers = [nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU(inplace=True), nn.Dropout3d(0.5), nn.MaxPool3d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))


def resnet() -> nn.Module:
    options = {"widen_factor": 0.125, "conv1_t_stride": 1, "num_classes": 3}
    return resnet18(spatial_dims=3, n_input_channels=2, **options)


def dense() -> nn.Module:
    return DenseNet(2, 2, 3, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)


def scrambled(module: nn.Module) -> nn.Module:
    """Statistics and factors of both signs, as if trained."""
    module = module.double().eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.running_mean.normal_(0, 0.1)
                part.weight.normal_()
                part.bias.normal_(0, 0.1)
    return module


@pytest.mark.parametrize(("build", "size"), [(resnet, (8, 7, 6)), (dense, (16, 12))])
def test_lrp_0_of_monai_networks_is_input_times_gradient(build: Any, size: tuple[int, ...]) -> None:
    net, image = scrambled(build()), torch.rand(2, 2, *size, dtype=torch.float64, requires_grad=True)
    trace = record(net, image, [])
    found = UnrolledLRP(LRPRules(Epsilon(1e-14), None, None)).by_modality(trace, CLASSES)
    assert found.shape == (2, 2, 2, *size)
    scores = trace.logits.gather(1, CLASSES)
    expected = torch.stack([image * torch.autograd.grad(z.sum(), image, retain_graph=True)[0] for z in scores.T], 1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("first", [None, WSquare(1e-14), Flat(1e-14)])
def test_zplus_of_a_resnet_conserves(first: Any) -> None:
    net, image = scrambled(resnet()), torch.rand(2, 2, 8, 7, 6, dtype=torch.float64)
    trace = record(net, image, [])
    found = UnrolledLRP(LRPRules(ZPlus(1e-14), Epsilon(1e-14), first))(trace, CLASSES)
    expected = trace.logits.gather(1, CLASSES) - net.fc.bias[CLASSES]
    torch.testing.assert_close(found.flatten(2).sum(2), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(training: bool) -> None:
    net, image = network().train(training), torch.rand(2, 2, 8, 8, 8)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    trace = record(net, image, [])
    before = copy.deepcopy(net.state_dict())
    UnrolledLRP()(trace, CLASSES)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training == training and not module._forward_hooks for module in net.modules())
    assert net[2].inplace
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert all(p.grad is None for name, p in net.named_parameters() if name != "0.weight")


def test_one_class_is_the_same_as_a_column_and_no_grad_is_respected() -> None:
    net = network().eval()
    trace = record(net, torch.rand(2, 2, 8, 8, 8), [])
    one = UnrolledLRP()(trace, torch.tensor([2, 0]))
    assert one.requires_grad
    with torch.no_grad():
        column = UnrolledLRP()(trace, torch.tensor([[2], [0]]))
    assert not column.requires_grad
    assert torch.equal(one, column)


def test_denominators_are_shared_by_the_classes() -> None:
    """All classes at once are each class alone."""
    trace = record(network().eval(), torch.rand(2, 2, 8, 8, 8), [])
    together = UnrolledLRP()(trace, torch.arange(3).expand(2, -1))
    for c in range(3):
        torch.testing.assert_close(together[:, c], UnrolledLRP()(trace, torch.tensor([c, c]))[:, 0])


def test_as_an_inferer() -> None:
    inferer, net = HeatmapInferer(UnrolledLRP(), class_idx=[0, 2]), network().eval()
    with torch.inference_mode():
        found = inferer(torch.rand(2, 2, 8, 8, 8), net)
    assert found.shape == (2, 2, 8, 8, 8)
    assert found.abs().max() > 0


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x)) if x.sum() > 0 else x


def gated() -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), Gate(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))


def test_a_rule_of_ones_own() -> None:
    def gate_rule(call: LayerCall, relevance: Tensor) -> Tensor:
        seen.append((call.name, tuple(call.x.shape), call.nonnegative))
        return relevance

    seen: list[Any] = []
    trace = record(gated(), torch.rand(2, 2, 8, 8, 8), [])
    rules = LRPRules(ZPlus(), Epsilon(1e-9), ZPlus())
    found = UnrolledLRP(rules, {Gate: gate_rule})(trace, CLASSES)
    assert seen == [("2", (2, 4, 6, 6, 6), True)]
    expected = trace.logits.gather(1, CLASSES) - trace.network[-1].bias[CLASSES]
    torch.testing.assert_close(found.flatten(2).sum(2), expected, rtol=0.05, atol=0.05)


def test_a_rule_of_ones_own_goes_before_a_built_in_one() -> None:
    trace = record(network().eval(), torch.rand(2, 2, 8, 8, 8), [])
    found = UnrolledLRP(layer_rules={nn.ReLU: lambda call, relevance: 0 * relevance})(trace, CLASSES)
    assert found.abs().max() == 0


def test_rules_by_layer() -> None:
    rules = LRPRules(by_layer={"0": Flat()})
    trace = record(network().eval(), torch.rand(1, 2, 8, 8, 8), [])
    found = UnrolledLRP(rules).by_modality(trace, torch.tensor([1]))
    torch.testing.assert_close(found[:, :, 0], found[:, :, 1])
    assert not torch.allclose(found, UnrolledLRP().by_modality(trace, torch.tensor([1])))


class TwoImages(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.ones(1, 3))

    def forward(self, image: Tensor) -> Tensor:
        return self.logits


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, image: Tensor, flag: bool = False) -> tuple[Tensor, Tensor]:
        return self.body(image), image


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: nn.Sequential(nn.Conv3d(2, 3, 1), nn.Sequential(nn.Softmax(1))),
            r"no relevance rule for layer '1.0' \(Softmax\): pass layer_rules=\{Softmax: rule\}",
        ),
        (gated, r"layer '2' of Sequential can't be read as a graph \(symbolically traced variables .*\{Gate: rule\}"),
        (lambda: Pair(), "Pair must return one tensor, got tuple"),
        (lambda: nn.Sequential(nn.Conv3d(2, 3, 1)), r"logits of shape B K, got \(1, 3, 8, 8, 8\)"),
        (lambda: Constant(), "the logits do not depend on the image"),
    ],
)
def test_networks_that_are_refused(build: Any, message: str) -> None:
    trace = record(build(), torch.rand(1, 2, 8, 8, 8), [])
    with pytest.raises(ValueError, match=message):
        UnrolledLRP()(trace, torch.tensor([0]))


def test_further_arguments_are_refused() -> None:
    trace = record(Pair(), torch.rand(2, 2, 8, 8, 8), [], flag=True)
    with pytest.raises(ValueError, match=r"LRP reads networks of one image, got further arguments \['flag'\]"):
        UnrolledLRP()(trace, CLASSES)


def test_two_images_are_refused() -> None:
    from monai_rrr.attribution.lrp import read_relevance_graph

    with pytest.raises(ValueError, match=r"TwoImages.forward must take one image, other arguments need a default"):
        read_relevance_graph(TwoImages())


def test_wrong_class() -> None:
    trace = record(network(), torch.rand(2, 2, 8, 8, 8), [])
    with pytest.raises(ValueError, match=r"class_idx must be in 0..2, got \[0, 3\]"):
        UnrolledLRP()(trace, torch.tensor([0, 3]))
