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

"""Every kind of layer: LRP-0 is input times gradient, z+ conserves, and weight gradients are those of the map."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_rrr.attribution import Epsilon, LRPRules, UnrolledLRP, WSquare, ZPlus, record

LRP_0 = LRPRules(Epsilon(1e-14), None, None)
LRP_ZPLUS = LRPRules(ZPlus(1e-14), Epsilon(1e-14), WSquare(1e-14))


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(layer(x) for layer in self.layers))


def in_place_sum(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


def norm(kind: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Normalization with factors of both signs and, for batch normalization, statistics of its own."""
    module = kind(*args, **kwargs)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-1.0, 1.5, module.weight.numel()).view_as(module.weight))
        module.bias.copy_(torch.linspace(0.3, -0.2, module.bias.numel()).view_as(module.bias))
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.copy_(torch.linspace(-0.2, 0.2, module.running_mean.numel()))
    return module


MIDDLE: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "relu": (3, lambda: nn.ReLU(inplace=True)),
    "leaky relu": (3, lambda: nn.LeakyReLU(0.1, inplace=True)),
    "prelu": (2, lambda: nn.PReLU()),
    "function relu": (2, lambda: Call(lambda x: F.relu(x, inplace=True))),
    "overlapping max pool": (3, lambda: nn.MaxPool3d(3, 2, 1)),
    "max pool, dilated": (2, lambda: nn.MaxPool2d(2, 1, 0, 2, ceil_mode=True)),
    "function max pool": (2, lambda: Call(lambda x: F.max_pool2d(x, 2, stride=1))),
    "adaptive max pool": (2, lambda: nn.AdaptiveMaxPool2d((3, 2))),
    "average pool": (3, lambda: nn.AvgPool3d(2)),
    "average pool, padded": (2, lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "function average pool": (2, lambda: Call(lambda x: F.avg_pool2d(x, (2, 3), padding=(0, 1)))),
    "adaptive average pool": (3, lambda: nn.AdaptiveAvgPool3d((3, 2, 4))),
    "upsample nearest": (3, lambda: nn.Upsample(scale_factor=2)),
    "upsample trilinear": (3, lambda: nn.Upsample(scale_factor=(2, 1, 1.5), mode="trilinear")),
    "interpolate": (2, lambda: Call(lambda x: F.interpolate(x, size=(7, 3), mode="bilinear", align_corners=True))),
    "sum": (3, lambda: Call(lambda x, a: x + a, nn.Conv3d(4, 4, 1))),
    "sum in place": (2, lambda: Call(in_place_sum, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1))),
    "twice the same": (2, lambda: Call(lambda x: torch.add(x, x))),
    "constant": (2, lambda: Call(lambda x: F.relu(x) + -0.3)),
    "concatenation": (3, lambda: Call(lambda x, a: torch.cat([x, a], dim=1), nn.Conv3d(4, 2, 1))),
    "dropout": (2, lambda: nn.Dropout2d(0.5)),
    "reshape": (2, lambda: Call(lambda x: x.view(x.size(0), 4, -1).unsqueeze(3))),
    "batch norm": (3, lambda: norm(nn.BatchNorm3d, 4)),
    "instance norm": (3, lambda: norm(nn.InstanceNorm3d, 4, affine=True)),
    "group norm": (2, lambda: norm(nn.GroupNorm, 2, 4)),
    "layer norm": (2, lambda: norm(nn.LayerNorm, (4, 5, 4))),
    "norm behind relu": (3, lambda: nn.Sequential(nn.ReLU(), norm(nn.InstanceNorm3d, 4, affine=True), nn.ReLU())),
    "silu": (2, lambda: nn.SiLU(inplace=True)),
}
EXACT = [name for name in MIDDLE if name != "silu"]


def make(name: str, relu: bool = False) -> tuple[nn.Sequential, Tensor]:
    """A convolution, the layer, another convolution, the mean as a function, and a head; and an image."""
    dims, build = MIDDLE[name]
    conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
    first, layer = conv(2, 4, 3, padding=1), build()
    size = (5, 4, 4)[:dims]
    channels = layer(first(torch.rand(1, 2, *size))).shape[1]
    mean = Call(lambda x: x.mean(tuple(range(2, 2 + dims))))
    act = nn.ReLU() if relu else nn.Identity()
    network = nn.Sequential(first, layer, act, conv(channels, 5, 1), nn.ReLU(), mean, nn.Linear(5, 3)).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * parameter.sign())
    return network, torch.randn(2, 2, *size, dtype=torch.float64)


class FrozenStatistics(nn.Module):
    """A normalization whose mean and deviation are constants for the gradient."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        module = self.module
        if isinstance(module, nn.BatchNorm3d):
            return module(x)
        fixed = x.detach()
        rows = fixed.reshape(len(x), getattr(module, "num_groups", x.shape[1]), -1)
        if isinstance(module, nn.LayerNorm):
            rows, shape = fixed.reshape(len(x), 1, -1), (1, *x.shape[1:])
        else:
            shape = (1, -1, *(1,) * (x.ndim - 2))
        mean = rows.mean(2, keepdim=True).expand_as(rows).reshape(x.shape)
        std = (rows.var(2, correction=0, keepdim=True) + module.eps).sqrt().expand_as(rows).reshape(x.shape)
        return (x - mean) / std * module.weight.reshape(shape) + module.bias.reshape(shape)


def with_frozen_statistics(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        if hasattr(module, "normalized_shape") or hasattr(module, "num_groups") or hasattr(module, "momentum"):
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], FrozenStatistics(module))
    return network


CLASSES = torch.tensor([[0, 2], [1, 1]])


def input_times_gradient(network: nn.Module, image: Tensor) -> Tensor:
    image = image.clone().requires_grad_(True)
    logits = with_frozen_statistics(network)(image + 0).gather(1, CLASSES)
    return torch.stack(
        [image * torch.autograd.grad(z.sum(), image, retain_graph=True)[0] for z in logits.T], 1
    ).detach()


@pytest.mark.parametrize("name", EXACT)
def test_lrp_0_is_input_times_gradient(name: str) -> None:
    network, image = make(name)
    found = UnrolledLRP(LRP_0).by_modality(record(network, image, []), CLASSES)
    torch.testing.assert_close(found, input_times_gradient(network, image), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MIDDLE)
def test_zplus_conserves(name: str) -> None:
    """No output is positive by its bias alone, so that there is always a positive contribution to share by."""
    network, image = make(name, relu=True)
    with torch.no_grad():
        for module in network[1:].modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                module.bias.copy_(-module.bias.abs())
    trace = record(network, image, [])
    found = UnrolledLRP(LRP_ZPLUS)(trace, CLASSES)
    expected = trace.logits.gather(1, CLASSES) - network[-1].bias[CLASSES]
    assert found.abs().max() > 1e-4
    torch.testing.assert_close(found.flatten(2).sum(2), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MIDDLE)
def test_weight_gradients_by_finite_differences(name: str) -> None:
    """Of the map itself, which depends on normalization statistics too: for LRP-epsilon and for z+."""
    network, image = make(name)
    for rules in (LRPRules(Epsilon(0.05), None, None), LRPRules(ZPlus(1e-6), Epsilon(0.05), ZPlus(1e-6))):
        attribute = UnrolledLRP(rules)
        direction = torch.randn(2, 2, *image.shape[1:], dtype=torch.float64)

        def value(attribute: UnrolledLRP = attribute, direction: Tensor = direction) -> Tensor:
            return (attribute.by_modality(record(network, image, []), CLASSES) * direction).sum()

        parameters = list(network.parameters())
        gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
        ways = [torch.randn_like(parameter) for parameter in parameters]
        found = sum((g * way).sum().item() for g, way in zip(gradients, ways, strict=True) if g is not None)
        values = []
        with torch.no_grad():
            for step in (2e-6, -4e-6):
                for parameter, way in zip(parameters, ways, strict=True):
                    parameter.add_(step * way)
                values.append(value().item())
        assert found == pytest.approx((values[0] - values[1]) / 4e-6, rel=1e-5)


def test_overlapping_max_pool_adds_up() -> None:
    """One maximum under 8 windows receives all of them; unpooling by index would keep one."""
    image = torch.zeros(1, 1, 4, 4, 4, dtype=torch.float64)
    image[..., 1, 1, 1] = 1.0
    network = nn.Sequential(nn.MaxPool3d(3, 1, 1), nn.Flatten(), nn.Linear(64, 1, bias=False)).double()
    nn.init.ones_(network[2].weight)
    found = UnrolledLRP(LRP_0)(record(network, image, []), torch.tensor([0]))
    assert found[0, 0, 1, 1, 1].item() == pytest.approx(27.0)
    assert found.sum().item() == pytest.approx(27.0)


@pytest.mark.parametrize("kind", [nn.InstanceNorm3d, nn.GroupNorm])
def test_plain_input_times_gradient_vanishes_and_frozen_statistics_do_not(kind: Any) -> None:
    layer = kind(4, affine=True, eps=1e-12) if kind is nn.InstanceNorm3d else kind(2, 4, eps=1e-12)
    conv, head = nn.Conv3d(2, 4, 3, bias=False), nn.Linear(4, 1, bias=False)
    network = nn.Sequential(conv, layer, nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), head).double()
    image = torch.randn(1, 2, 5, 5, 5, dtype=torch.float64, requires_grad=True)
    trace = record(network, image, [])
    plain = image * torch.autograd.grad(trace.logits.sum(), image, retain_graph=True)[0]
    assert abs(plain.sum()) < 1e-9 < abs(trace.logits)
    frozen = UnrolledLRP(LRP_0)(trace, torch.tensor([0]))
    absorbed = input_times_gradient_of_offset(network, image)
    torch.testing.assert_close(frozen.sum() + absorbed, trace.logits.sum())


def input_times_gradient_of_offset(network: nn.Sequential, image: Tensor) -> Tensor:
    """What the summand ``-mean * factor`` of the normalization receives."""
    before = network[0](image)
    after = network[1](before).detach().requires_grad_(True)
    gradient = torch.autograd.grad(network[2:](after).sum(), after)[0]
    rows = before.reshape(1, getattr(network[1], "num_groups", 4), -1)
    mean = rows.mean(2, keepdim=True).expand_as(rows).reshape(before.shape)
    std = (rows.var(2, correction=0, keepdim=True) + 1e-12).sqrt().expand_as(rows).reshape(before.shape)
    return (gradient * -mean / std).sum()


def test_zplus_through_a_normalization_follows_the_sign_of_its_factor() -> None:
    layers = [nn.Conv3d(2, 4, 3), norm(nn.InstanceNorm3d, 4, affine=True), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 1)).double()
    image = torch.rand(1, 2, 5, 5, 5, dtype=torch.float64)
    rules = LRPRules(ZPlus(1e-14), Epsilon(1e-14), None)
    found = UnrolledLRP(rules).by_modality(record(network, image, []), torch.tensor([0]))
    relevance = network[:3](image) * network[5].weight.reshape(1, 4, 1, 1, 1) / 27
    weight = (network[0].weight * network[1].weight.sign().reshape(4, 1, 1, 1, 1)).clamp(min=0)
    expected = image * F.conv_transpose3d(relevance / F.conv3d(image, weight), weight)
    torch.testing.assert_close(found[:, 0], expected)


def test_batch_statistics_in_training_mode() -> None:
    """The statistics of the batch are used, and the running ones stay as they were."""
    network, image = make("batch norm")
    frozen = with_frozen_statistics(network)
    network.train()
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        hidden = network[0](image)
        frozen[1].module.running_mean.copy_(hidden.mean((0, 2, 3, 4)))
        frozen[1].module.running_var.copy_(hidden.var((0, 2, 3, 4), correction=0))
    found = UnrolledLRP(LRP_0).by_modality(record(network, image, [], update_statistics=False), CLASSES)
    expected = UnrolledLRP(LRP_0).by_modality(record(nn.Sequential(*unwrap(frozen)), image, []), CLASSES)
    torch.testing.assert_close(found, expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def unwrap(network: nn.Module) -> list[nn.Module]:
    return [layer.module if isinstance(layer, FrozenStatistics) else layer for layer in network.children()]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Upsample(scale_factor=2, mode="bicubic"), "layer '1' must interpolate linearly or to the nearest"),
        (nn.AvgPool2d(2, divisor_override=3), "layer '1' must divide by the size of its window"),
        (Call(lambda x: torch.add(x, x, alpha=2)), "'add' must add with factor alpha = 1, got 2"),
        (Call(lambda x: x + x[:, :1], nn.Identity()), "function 'getitem'"),
        (Call(lambda x, a: x + a, nn.AdaptiveAvgPool2d(1)), "must add tensors of one shape, got"),
    ],
)
def test_what_has_no_rule_is_named(layer: nn.Module, message: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
    function = layer.function if isinstance(layer, Call) else None
    if message.startswith("function"):
        layer.function = lambda x, a: function(x)
    with pytest.raises(ValueError, match=message):
        UnrolledLRP()(record(network, torch.rand(1, 1, 4, 4), []), torch.tensor([0]))
