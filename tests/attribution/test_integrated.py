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

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_rrr.attribution import InputTimesGradient, IntegratedGradients, record


def network_of(act: nn.Module | None = None) -> nn.Sequential:
    layers = [nn.Conv3d(2, 4, 3), act or nn.Softplus(), nn.InstanceNorm3d(4), nn.Conv3d(4, 4, 1), nn.Softplus()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 3 * 2 * 2, 3)).double()


def image_of(batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, 5, 4, 4, dtype=torch.float64)


CLASSES = torch.tensor([[0, 2], [1, 1]])


@pytest.mark.parametrize("baseline", [0.0, -1.5])
def test_sum_is_the_difference_of_the_scores(baseline: float) -> None:
    network, image = network_of(), image_of()
    heatmap = IntegratedGradients(200, 50, baseline)(record(network, image, []), CLASSES)
    scores = network(image) - network(torch.full_like(image, baseline))
    torch.testing.assert_close(heatmap.flatten(2).sum(2), scores.gather(1, CLASSES), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("per_pass", [1, 2, 5, 9])
def test_value_does_not_depend_on_the_passes(per_pass: int) -> None:
    network, image = network_of(), image_of()
    found = IntegratedGradients(5, per_pass, 0.5, per_modality=True)(record(network, image, []), CLASSES)
    assert found.shape == (2, 2, 2, 5, 4, 4)
    expected = torch.zeros(2, 2, 2, 5, 4, 4, dtype=torch.float64)
    for b in range(2):
        for t in range(2):
            for step in range(5):
                leaf = (0.5 + (step + 0.5) / 5 * (image[b : b + 1] - 0.5)).requires_grad_(True)
                gradient = torch.autograd.grad(network(leaf)[0, CLASSES[b, t]], leaf)[0]
                expected[b, t] += gradient[0] * (image[b] - 0.5) / 5
    torch.testing.assert_close(found.detach(), expected)


def test_linear_network_needs_one_step() -> None:
    network = nn.Sequential(nn.Conv3d(2, 4, 3, bias=False), nn.Flatten(), nn.Linear(48, 3)).double()
    trace = record(network, image_of(), InputTimesGradient("none").layers)
    one = IntegratedGradients(1)(trace, CLASSES)
    torch.testing.assert_close(one, InputTimesGradient("none")(trace, CLASSES))


def test_memory_and_batch_do_not_grow_with_the_steps() -> None:
    network, sizes = network_of(), []
    network[0].register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))

    def kept(steps: int) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        trace = record(network, image_of(), [])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            heatmap = IntegratedGradients(steps, 2)(trace, CLASSES)
        heatmap.sum().backward()
        return total

    few, many = kept(2), kept(16)
    assert max(sizes) == 4, "two samples, two steps"
    assert many - few < image_of().numel(), "no pass keeps its graph, which is many times the image"
    assert network[0].weight.grad.abs().sum() > 0


def test_quiet_without_gradients() -> None:
    trace = record(network_of(), image_of(), [])
    with torch.no_grad():
        quiet = IntegratedGradients(4)(trace, CLASSES)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, IntegratedGradients(4)(trace, CLASSES).detach())


def test_keyword_arguments_are_repeated_for_every_step() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(2, 3, 1, bias=False)

        def forward(self, image: Tensor, factor: Tensor, extra: Any = None) -> Tensor:
            return self.conv(image).flatten(2).sum(2) * factor

    network, image, factor = Scaled().double(), image_of(), torch.tensor([[1.0], [-2.0]]).double()
    trace = record(network, image, [], factor=factor, extra="plain")
    heatmap = IntegratedGradients(4, 3)(trace, CLASSES)
    torch.testing.assert_close(heatmap.flatten(2).sum(2), trace.logits.gather(1, CLASSES))


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"steps_per_pass": 0}])
def test_exception(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got"):
        IntegratedGradients(**arguments)
