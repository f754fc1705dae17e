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

"""Every rule against a dense reference that lists the contributions one by one, and against zennit and captum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_rrr.attribution import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    LRPRules,
    Rule,
    UnrolledLRP,
    WSquare,
    ZBox,
    ZPlus,
    record,
)
from monai_rrr.attribution.lrp_linear import WeightedLayer, linear_map, stabilized_ratio

EPS = 1e-15
LOW, HIGH = (-2.0, -3.0, -2.5, -2.0), 3.0
RULES: dict[str, Any] = {
    "epsilon": Epsilon(EPS),
    "gamma": Gamma(0.3, EPS),
    "z+": ZPlus(EPS),
    "alpha-beta": AlphaBeta(2.0, 1.0, EPS),
    "alpha 1": AlphaBeta(1.0, 0.0, EPS),
    "z^B": ZBox(LOW, HIGH, EPS),
    "w^2": WSquare(EPS),
    "flat": Flat(EPS),
}
CONSERVING = ["z+", "alpha-beta", "alpha 1", "z^B", "w^2", "flat"]
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "conv2d": (lambda: nn.Conv2d(4, 3, 3, padding=1), (4, 4, 3)),
    "conv3d stride": (lambda: nn.Conv3d(4, 2, 3, stride=2, padding=1), (4, 4, 3, 3)),
    "conv3d groups": (lambda: nn.Conv3d(4, 6, (1, 2, 2), groups=2), (4, 2, 3, 3)),
    "conv3d dilation": (lambda: nn.Conv3d(4, 2, (1, 2, 2), dilation=(1, 2, 1), stride=(2, 1, 2)), (4, 3, 4, 3)),
    "conv2d same": (lambda: nn.Conv2d(4, 3, 3, padding="same", dilation=2), (4, 4, 3)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), (4, 2, 3)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 4, 2, stride=2, groups=2), (4, 2, 1, 2)),
    "transposed dilation": (
        lambda: nn.ConvTranspose2d(4, 2, 2, stride=1, dilation=2, output_padding=1),
        (4, 2, 3),
    ),
}


def dense_weight(layer: nn.Module, size: tuple[int, ...], transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Matrix ``n_out n_in`` of the layer whose weight was transformed, by calling it on unit vectors."""
    units = torch.eye(torch.Size(size).numel(), dtype=torch.float64).reshape(-1, *size)
    copy = {"weight": transform(layer.weight), "bias": torch.zeros_like(layer.bias)}
    return torch.func.functional_call(layer, copy, (units,)).flatten(1).T


def contributions(name: str, layer: nn.Module, x: Tensor) -> list[tuple[float, Tensor, Tensor]]:
    """Terms ``(factor, contribution of every input to every output, offset)`` of a rule, as in its equation."""
    size, flat = tuple(x.shape), x.flatten()
    exact = dense_weight(layer, size, lambda w: w)
    offset = layer(x[None]).flatten() - exact @ flat
    signed = exact * flat
    none = torch.zeros_like(offset)
    if name == "epsilon":
        return [(1.0, signed, offset)]
    if name == "gamma":
        y = signed.sum(1) + offset
        agree = torch.where((y >= 0)[:, None], signed.clamp(min=0), signed.clamp(max=0))
        bias = torch.where(y >= 0, offset.clamp(min=0), offset.clamp(max=0))
        return [(1.0, signed + 0.3 * agree, offset + 0.3 * bias)]
    if name in ("z+", "alpha 1"):
        return [(1.0, signed.clamp(min=0), none)]
    if name == "alpha-beta":
        return [(2.0, signed.clamp(min=0), none), (-1.0, signed.clamp(max=0), none)]
    if name == "z^B":
        low = torch.tensor(LOW, dtype=torch.float64).reshape(-1, *(1,) * (x.ndim - 1)).expand(size).flatten()
        high = torch.full_like(low, HIGH)
        positive = dense_weight(layer, size, lambda w: w.clamp(min=0))
        negative = dense_weight(layer, size, lambda w: w.clamp(max=0))
        return [(1.0, signed - positive * low - negative * high, none)]
    power = {"w^2": lambda w: w.square(), "flat": torch.ones_like}[name]
    return [(1.0, dense_weight(layer, size, power), none)]


def reference(name: str, layer: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Share out the relevance of every output; one without contributions gives nothing."""
    result = torch.zeros(x.numel(), dtype=torch.float64)
    for factor, shares, offset in contributions(name, layer, x):
        total = shares.sum(1) + offset
        result += factor * torch.where(total == 0, 0.0, relevance.flatten() / total) @ shares
    return result.reshape(x.shape)


def make(layer: str) -> tuple[nn.Module, tuple[int, ...]]:
    build, size = LAYERS[layer]
    return build().double(), size


def apply(rule: Rule, layer: nn.Module, x: Tensor, relevance: Tensor, nonnegative: bool = False) -> Tensor:
    shape = (-1,) if x.ndim == 2 else (1, -1, *(1,) * (x.ndim - 2))
    offset = layer.bias.reshape(shape)
    view = WeightedLayer(x, nonnegative, linear_map(layer, "0"), layer.weight, lambda: (None, offset), layer(x))
    return rule(view, relevance)


# every rule and every layer; most combinations wait for the slow run
CASES = [
    pytest.param(layer, positive, name, marks=() if layer == "conv3d stride" or name == "z+" else pytest.mark.slow)
    for name in RULES
    for layer, positive in [(layer, False) for layer in LAYERS] + [("linear", True), ("conv3d stride", True)]
]


@pytest.mark.parametrize(("layer", "positive", "name"), CASES)
def test_value(layer: str, positive: bool, name: str) -> None:
    module, size = make(layer)
    x = torch.rand(2, *size, dtype=torch.float64) - (0.0 if positive else 0.5)
    relevance = torch.randn(3, *module(x).shape, dtype=torch.float64)
    found = apply(RULES[name], module, x, relevance, positive)
    assert found.shape == (3, 2, *size)
    expected = reference(name, module, x[1], relevance[2, 1])
    torch.testing.assert_close(found[2, 1], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("layer", "positive", "name"), [case for case in CASES if case.values[2] in CONSERVING])
def test_conservation(layer: str, positive: bool, name: str) -> None:
    """To 1e-9, for what reaches outputs that have contributions of all signs that the rule asks for."""
    module, size = make(layer)
    x = torch.randn(1, *size, dtype=torch.float64)
    x = x.abs() if positive else x
    relevance = torch.randn(1, *module(x).shape, dtype=torch.float64)
    shares = torch.stack([part.sum(1) for _, part, _ in contributions(name, module, x[0])])
    reached = (shares.abs() > 1e-6).all(0)
    assert reached.float().mean() > 0.4
    relevance = relevance * reached.reshape(relevance.shape)
    assert abs(apply(RULES[name], module, x, relevance).sum() - relevance.sum()) < 1e-9


def test_epsilon_gives_the_offset_its_share() -> None:
    module, size = make("conv3d stride")
    x = torch.randn(2, *size, dtype=torch.float64)
    y = module(x)
    relevance = torch.randn_like(y)[None]
    absorbed = (relevance * module.bias.reshape(1, -1, 1, 1, 1) / y).sum()
    found = apply(Epsilon(EPS), module, x, relevance)
    torch.testing.assert_close(found.sum() + absorbed, relevance.sum())


@pytest.mark.parametrize(("layer", "positive", "name"), CASES)
def test_weight_gradients_by_finite_differences(layer: str, positive: bool, name: str) -> None:
    module, size = make(layer)
    x = (torch.rand(1, *size, dtype=torch.float64) - (0.0 if positive else 0.5)).requires_grad_(True)
    with torch.no_grad():
        # away from the kinks, where a difference quotient is no derivative
        module.weight.add_(0.05 * module.weight.sign())
        module.bias.add_(0.05 * module.bias.sign())
        x.add_(0.05 * x.sign())
    relevance = torch.randn(2, *module(x).shape, dtype=torch.float64)
    direction = torch.randn(2, 1, *size, dtype=torch.float64)
    rule = {**RULES, "epsilon": Epsilon(0.05), "gamma": Gamma(0.3, 0.05), "z+": ZPlus(0.05)}[name]
    if "alpha" in name:
        rule = AlphaBeta(rule.alpha, rule.beta, 0.05)

    def value() -> Tensor:
        return (apply(rule, module, x, relevance, positive) * direction).sum()

    tensors = [module.weight, module.bias, x]
    ways = [torch.randn_like(tensor) for tensor in tensors]
    total = value()
    gradients = torch.autograd.grad(total, tensors, allow_unused=True) if total.requires_grad else [None] * 3
    for tensor, gradient, way in zip(tensors, gradients, ways, strict=True):
        found = 0.0 if gradient is None else (gradient * way).sum().item()
        with torch.no_grad():
            tensor.add_(1e-5 * way)
            above = value().item()
            tensor.sub_(2e-5 * way)
            assert found == pytest.approx((above - value().item()) / 2e-5, rel=1e-5, abs=1e-8)
            tensor.add_(1e-5 * way)


def small_network(bias: bool) -> nn.Sequential:
    """Convolutions and a head with weights that no random number generator decides."""
    layers = [nn.Conv2d(2, 3, 3, padding=1, bias=bias), nn.ReLU(), nn.Conv2d(3, 4, 2, stride=2, bias=bias), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 2, bias=bias)).double()
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(torch.sin(torch.arange(p.numel(), dtype=torch.double) * 1.7 + i).reshape(p.shape) * 0.5)
    return network


# zennit 0.5.1, torch 2.13.0, every fifth voxel of the map of class 1, for small_network(bias) and
# image = cos(arange(32)).reshape(1, 2, 4, 4):
#   s, E = 1e-9, zennit.rules.Epsilon(1e-9); Z = ZPlus(s, zero_params="bias")
#   body and first: Gamma(0.25, stabilizer=s); Z; AlphaBeta(2, 1, stabilizer=s, zero_params="bias")
#   body Z, first: ZBox(-ones, ones, s, zero_params="bias"); WSquare(s, zero_params="bias"); Flat(s, zero_params="bias")
#   with NameMapComposite([(("0",), first), (("2",), body), (("5",), E)]).context(network) as modified:
#       out = modified(image); torch.autograd.grad(out, image, out * torch.tensor([[0.0, 1.0]]))
# captum 0.9.0: network[0].rule = network[5].rule = EpsilonRule(1e-9); network[2].rule = GammaRule(gamma=0.25) or
# Alpha1_Beta0_Rule(); LRP(network).attribute(image, target=1), with flatten(1) in place of nn.Flatten, which captum
# has no rule for. Its two rules keep the bias as it is, ours don't: compared without bias.
E, Z, S = Epsilon(1e-9), ZPlus(1e-9), 1e-9
LITERALS: list[Any] = [
    (
        "zennit Epsilon",
        LRPRules(E, E, E),
        True,
        [0.085554884, -0.0230625619, 0.2277681022, 0.1567716601, -0.1139363338, -0.3726671635, -0.0786013785],
    ),
    (
        "zennit Gamma",
        LRPRules(Gamma(0.25, S), E, Gamma(0.25, S)),
        True,
        [0.0587675943, -0.0177875289, 0.1153385115, 0.0731782221, -0.0862547367, -0.2609523432, -0.0579962619],
    ),
    (
        "zennit ZPlus",
        LRPRules(Z, E, Z),
        True,
        [0.0160876869, -0.0153491673, -0.0464113222, -0.0315611506, -0.0585286395, -0.1438648108, -0.0375985535],
    ),
    (
        "zennit AlphaBeta",
        LRPRules(AlphaBeta(2, 1, S), E, AlphaBeta(2, 1, S)),
        True,
        [0.1671142302, -0.0718272352, 0.5191077485, 0.3283160682, -0.31130562, -0.6265369528, -0.1866311162],
    ),
    (
        "zennit ZBox",
        LRPRules(Z, E, ZBox(-1, 1, S)),
        True,
        [0.0109863415, -0.0187273564, -0.0425530503, -0.0302093702, -0.0744434849, -0.1084686813, -0.0805155556],
    ),
    (
        "zennit WSquare",
        LRPRules(Z, E, WSquare(S)),
        True,
        [0.0073310074, -0.0045907057, -0.0941549413, -0.0358783566, -0.0774672606, -0.0802759358, -0.0909878088],
    ),
    (
        "zennit Flat",
        LRPRules(Z, E, Flat(S)),
        True,
        [0.0026491755, -0.0452451728, -0.087336614, -0.0501596858, -0.0431686471, -0.0628498096, -0.0959775084],
    ),
    (
        "captum EpsilonRule",
        LRPRules(E, E, E),
        True,
        [0.085554884, -0.0230625619, 0.2277681022, 0.1567716601, -0.1139363338, -0.3726671635, -0.0786013785],
    ),
    (
        "captum GammaRule",
        LRPRules(Gamma(0.25, S), E, E),
        False,
        [-0.1200542501, -0.1050440595, 0.10894242, -0.0213646497, -0.0960797742, -0.1296525266, 0.03114605],
    ),
    (
        "captum Alpha1_Beta0_Rule",
        LRPRules(Z, E, E),
        False,
        [-0.0841685918, -0.1082043316, 0.1159197153, 0.0042487208, -0.1286910695, -0.1200396663, 0.0244562663],
    ),
]


@pytest.mark.parametrize(("rules", "bias", "expected"), [pytest.param(*row[1:], id=row[0]) for row in LITERALS])
def test_values_of_zennit_and_captum(rules: LRPRules, bias: bool, expected: list[float]) -> None:
    image = torch.cos(torch.arange(32, dtype=torch.double)).reshape(1, 2, 4, 4)
    heatmap = UnrolledLRP(rules).by_modality(record(small_network(bias), image, []), torch.tensor([1]))
    torch.testing.assert_close(heatmap.flatten()[::5], torch.tensor(expected, dtype=torch.double), rtol=0, atol=2e-9)


def test_gradient_that_zennit_gets_wrong() -> None:
    """Loss ``sum R^2``: zennit 0.5.1 returns -2.7090 for the first weight of layer 2; its rules read ``param.data``."""
    image = torch.cos(torch.arange(32, dtype=torch.double)).reshape(1, 2, 4, 4)
    network, attribute = small_network(True), UnrolledLRP(LRPRules(E, E, E))

    def loss() -> Tensor:
        return attribute.by_modality(record(network, image, []), torch.tensor([1])).square().sum()

    gradient = torch.autograd.grad(loss(), network[2].weight)[0].flatten()[0].item()
    with torch.no_grad():
        network[2].weight.view(-1)[0] += 1e-6
        above = loss().item()
        network[2].weight.view(-1)[0] -= 2e-6
        below = loss().item()
    assert gradient == pytest.approx((above - below) / 2e-6, rel=1e-5)
    assert gradient == pytest.approx(0.9375, abs=1e-3)


def test_ratio_at_and_below_zero() -> None:
    ones = torch.ones(4)
    found = stabilized_ratio(ones, torch.tensor([0.0, -0.0, -1e-3, 1e-3]), 1e-3)
    torch.testing.assert_close(found, torch.tensor([1e3, 1e3, -5e2, 5e2]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AlphaBeta(1.0, 1.0), r"alpha - beta = 1 and beta >= 0, got alpha 1.0 and beta 1.0"),
        (lambda: AlphaBeta(0.5, -0.5), "got alpha 0.5 and beta -0.5"),
        (lambda: ZBox((0.0, 2.0), 1.0), r"low <= high, got \(0.0, 2.0\) and 1.0"),
        (
            lambda: linear_map(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "stem"),
            "layer 'stem' must pad with zeros, got padding_mode='reflect'",
        ),
        (
            lambda: linear_map(nn.Conv2d(1, 1, 2, padding="same"), "stem"),
            r"layer 'stem' must pad symmetrically, got kernel \(2, 2\) and 'same'",
        ),
        (lambda: linear_map(nn.Bilinear(1, 1, 1), "pair"), "layer 'pair' must be a Linear or a convolution"),
    ],
)
def test_wrong_arguments(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
