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


"""What every attributor owes to the network it explains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monai_rrr.attribution import (
    CAM,
    Attributor,
    GradCAM,
    GuidedBackprop,
    HiResCAM,
    InputTimesGradient,
    IntegratedGradients,
    record,
)

ATTRIBUTORS: dict[str, Attributor] = {
    "cam": CAM("trunk", "head"),
    "grad_cam": GradCAM("trunk"),
    "grad_cam_early": GradCAM("trunk.0", relu=False),
    "hirescam": HiResCAM("trunk.2"),
    "input_x_gradient": InputTimesGradient("none"),
    "ixg_ln": InputTimesGradient(),
    "guided": GuidedBackprop(),
    "integrated": IntegratedGradients(steps=4, steps_per_pass=2),
}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1),
            nn.BatchNorm3d(4),
            nn.LeakyReLU(0.3, inplace=True),
            nn.GroupNorm(2, 4),
            nn.Softplus(),
            nn.Conv3d(4, 4, 1),
            nn.Dropout3d(0.2),
        )
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.trunk(image).flatten(2).mean(2))


@pytest.fixture(params=ATTRIBUTORS)
def attribute(request: pytest.FixtureRequest) -> Attributor:
    return ATTRIBUTORS[request.param]


@pytest.fixture(params=[True, False], ids=["training", "evaluation"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    return Classifier().train(request.param)


CLASSES = torch.tensor([[0, 2], [1, 1]])


def test_parameters_receive_gradient(attribute: Attributor, network: nn.Module) -> None:
    heatmap = attribute(record(network, torch.rand(2, 2, 4, 4, 4), attribute.layers), CLASSES)
    (heatmap - heatmap.detach() - 1).square().sum().backward()
    for name, parameter in network.named_parameters():
        if name.endswith("weight"):  # a heatmap need not depend on biases above its layer
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert network.head.weight.grad.abs().sum() > 0
    assert network.trunk[0].weight.grad.abs().sum() > 0


def test_nothing_is_touched(attribute: Attributor, network: nn.Module) -> None:
    network.trunk[0].weight.requires_grad_(False)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 2.5)
    trace = record(network, torch.rand(2, 2, 4, 4, 4), attribute.layers)
    flags = [module.training for module in network.modules()]
    trainable = [parameter.requires_grad for parameter in network.parameters()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.random.get_rng_state()
    attribute(trace, CLASSES)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [module.training for module in network.modules()] == flags
    assert [parameter.requires_grad for parameter in network.parameters()] == trainable
    assert all((parameter.grad == 2.5).all() for parameter in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(not m._forward_hooks and not m._backward_hooks and not m._forward_pre_hooks for m in network.modules())
    assert all(feature.is_leaf or not feature.retains_grad for feature in trace.features.values())
    assert trace.image.grad is None
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_trace_can_be_explained_again_and_trained_on(attribute: Attributor, network: nn.Module) -> None:
    trace = record(network, torch.rand(2, 2, 4, 4, 4), attribute.layers)
    first, second = attribute(trace, CLASSES), attribute(trace, CLASSES)
    assert torch.equal(first, second)
    (trace.logits.sum() + first.sum() + second.sum()).backward()


def test_shape_and_batch_independence(attribute: Attributor) -> None:
    network = Classifier().eval()
    image = torch.rand(2, 2, 4, 3, 5)
    whole = attribute(record(network, image, attribute.layers), CLASSES)
    assert whole.shape == (2, 2, 4, 3, 5)
    for sample in range(2):
        part = slice(sample, sample + 1)
        torch.testing.assert_close(
            attribute(record(network, image[part], attribute.layers), CLASSES[part]), whole[part]
        )


def test_zero_image_is_finite(attribute: Attributor) -> None:
    assert attribute(record(Classifier(), torch.zeros(2, 2, 4, 4, 4), attribute.layers), CLASSES).isfinite().all()


def test_weight_gradients_by_finite_differences(attribute: Attributor) -> None:
    network = Classifier().double().eval()
    image, direction = torch.rand(2, 2, 4, 3, 4, dtype=torch.float64), torch.randn(2, 2, 4, 3, 4, dtype=torch.float64)

    def value() -> Tensor:
        heatmap = attribute(record(network, image, attribute.layers), CLASSES)
        return (heatmap * direction).sum() + heatmap.square().sum()

    parameters = [network.trunk[0].weight, network.trunk[3].weight, network.trunk[5].weight, network.head.weight]
    for parameter, gradient in zip(parameters, torch.autograd.grad(value(), parameters), strict=True):
        for index in (0, parameter.numel() - 1):
            step, flat = 1e-6, parameter.data.view(-1)
            flat[index] += step
            above = value().detach()
            flat[index] -= 2 * step
            difference = (above - value().detach()) / (2 * step)
            flat[index] += step
            torch.testing.assert_close(gradient.flatten()[index], difference, rtol=1e-5, atol=1e-8)


def test_nothing_is_left_after_an_exception(attribute: Attributor) -> None:
    """A network that fails in a pass of the attributor's own, or an impossible class, leaves everything as it was."""
    network = Classifier()
    trace = record(network, torch.rand(2, 2, 4, 4, 4), attribute.layers)
    good, bad = network.head, nn.Linear(5, 3)
    random = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=r"class_idx must be in 0\.\.2, got \[3\]"):
        attribute(trace, torch.tensor([3, 3]))
    network.head = bad
    if not attribute.layers:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            attribute(trace, CLASSES)
    network.head = good
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert network.training
    assert all(not m._forward_hooks and not m._backward_hooks for m in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    attribute(record(network, torch.rand(2, 2, 4, 4, 4), attribute.layers), CLASSES).sum().backward()
