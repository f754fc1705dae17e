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
from torch import Tensor, nn

from monai_rrr.attribution import INPUT, InputTimesGradient, record


class Permute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1) if x.shape[1] == 4 else x.movedim(-1, 1)


NORMS = {
    "instance": lambda: nn.InstanceNorm3d(4, eps=1e-12),
    "group": lambda: nn.GroupNorm(2, 4, eps=1e-12, affine=False),
    "layer": lambda: nn.Sequential(Permute(), nn.LayerNorm(4, eps=1e-12, bias=False), Permute()),
}


def bias_free(norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1, bias=False),
        NORMS[norm](),
        nn.LeakyReLU(0.2),
        nn.Conv3d(4, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 5 * 4 * 3, 3, bias=False),
    )


def image_of(batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, 5, 4, 3, dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
def test_relevance_sums_to_the_score_when_scales_are_constant(norm: str) -> None:
    network, classes = bias_free(norm).double(), torch.tensor([[0, 2], [1, 1]])
    trace = record(network, image_of(), [INPUT])
    scores = trace.logits.gather(1, classes)

    def total(constant: str) -> Tensor:
        return InputTimesGradient(constant)(trace, classes).flatten(2).sum(2)

    torch.testing.assert_close(total("scale"), scores)
    assert scores.abs().min() > 1e-3
    assert total("none").abs().max() < 1e-6, "the scale of the image changes nothing"
    assert (total("statistics") - scores).abs().max() > 1e-4, "a constant mean acts as a bias"


def test_plain_product_follows_the_equation() -> None:
    network, image, classes = bias_free("instance").double(), image_of(), torch.tensor([[0, 2], [1, 1]])
    heatmap = InputTimesGradient("none", per_modality=True)(record(network, image, [INPUT]), classes)
    assert heatmap.shape == (2, 2, 2, 5, 4, 3)
    for b, t in ((0, 0), (0, 1), (1, 0)):
        leaf = image[b : b + 1].clone().requires_grad_(True)
        network(leaf)[0, classes[b, t]].backward()
        torch.testing.assert_close(heatmap[b, t], (leaf * leaf.grad)[0])


@pytest.mark.parametrize("constant", ["scale", "statistics"])
@pytest.mark.parametrize("norm", NORMS)
def test_constants_follow_the_definition(norm: str, constant: str) -> None:
    """The same layers, written out with detached statistics."""
    network, image, classes = bias_free(norm).double(), image_of(1), torch.tensor([1])
    dims = {"instance": (2, 3, 4), "group": (2,), "layer": (1,)}[norm]

    def normalized(x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(1, 2, -1) if norm == "group" else x
        mean, deviation = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True).add(1e-12).sqrt()
        mean = mean.detach() if constant == "statistics" else mean
        return ((x - mean) / deviation.detach()).reshape(shape)

    leaf = image.clone().requires_grad_(True)
    network[2:](normalized(network[0](leaf)))[0, 1].backward()
    found = InputTimesGradient(constant)(record(network, image, []), classes)
    torch.testing.assert_close(found.detach()[0, 0], (leaf * leaf.grad).detach().sum(1)[0])


def test_modalities_sum_to_the_map_without_their_axis() -> None:
    trace = record(bias_free("group").double(), image_of(), [])
    classes = torch.tensor([0, 1])
    each = InputTimesGradient(per_modality=True)(trace, classes)
    torch.testing.assert_close(each.sum(2), InputTimesGradient()(trace, classes))


@pytest.mark.parametrize("constant", ["none", "scale"])
def test_halves_of_a_trace(constant: str) -> None:
    attribute, classes = InputTimesGradient(constant), torch.tensor([0, 1, 2, 1])
    trace = record(bias_free("instance").double(), image_of(4), attribute.layers)
    whole = attribute(trace, classes).chunk(2)
    for half, rows, expected in zip(trace.split(), classes.chunk(2), whole, strict=True):
        torch.testing.assert_close(attribute(half, rows), expected)


@pytest.mark.parametrize("constant", ["none", "scale"])
def test_each_head_explains_its_own_modality(constant: str) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Conv3d(1, 3, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten())

        def forward(self, image: Tensor, present: Tensor) -> Tensor:
            return self.branch(image.flatten(0, 1).unsqueeze(1)).unflatten(0, image.shape[:2]) * present[..., None]

    attribute, image = InputTimesGradient(constant, per_modality=True), image_of().float()
    present = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    heatmap = attribute(record(Heads(), image, attribute.layers, present=present), torch.tensor([0, 1]))
    assert heatmap[0, 0, 1].abs().max() == 0
    assert heatmap[1, 0].flatten(1).abs().amax(1).min() > 0


def test_frozen_network_can_be_explained() -> None:
    network = bias_free("instance").double().requires_grad_(False)
    heatmap = InputTimesGradient()(record(network, image_of(), []), torch.tensor([0, 1]))
    assert heatmap.abs().max() > 0


def test_autocast_of_the_trace_holds_for_the_second_pass() -> None:
    network, kinds = bias_free("group"), []
    network[3].register_forward_hook(lambda _, __, output: kinds.append(output.dtype))
    image = image_of().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = record(network, image, [])
    heatmap = InputTimesGradient()(trace, torch.tensor([0, 1]))
    assert kinds == [torch.bfloat16] * 2
    assert heatmap.dtype == torch.float32
    exact = InputTimesGradient()(record(network, image, []), torch.tensor([0, 1]))
    assert (heatmap - exact).abs().max() < 0.1 * exact.abs().max()
    heatmap.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_exception() -> None:
    with pytest.raises(ValueError, match="constant must be none, scale or statistics, got 'sigma'"):
        InputTimesGradient("sigma")
    trace = record(bias_free("instance").double(), image_of(), [])
    with pytest.raises(ValueError, match=r"layer '<image>' was not recorded: expected one of \[\]"):
        InputTimesGradient("none")(trace, torch.tensor([0, 1]))
    with torch.no_grad():
        quiet = record(bias_free("instance").double(), image_of(), [INPUT])
    with pytest.raises(ValueError, match="the image or the logits carry no gradient: record the trace with gradients"):
        InputTimesGradient("none")(quiet, torch.tensor([0, 1]))
