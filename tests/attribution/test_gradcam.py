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
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from monai.networks.nets import DenseNet, SegResNet, SwinUNETR, ViT, resnet18
from torch import Tensor, nn

from monai_rrr.attribution import ChannelsLast, GradCAM, TokenGrid, positive_score, record


def classifier(spatial_dims: int = 3, act: nn.Module | None = None) -> nn.Sequential:
    conv, norm, pool = {
        2: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
    }[spatial_dims]
    act = act or nn.Softplus()
    return nn.Sequential(
        conv(1, 4, 3, padding=1),
        act,
        conv(4, 6, 3, stride=2),
        norm(6),
        nn.Softplus(),
        pool(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def naive(network: nn.Sequential, image: Tensor, layer: int, class_idx: Tensor, relu: bool) -> Tensor:
    """Follow the equations: one forward and one backward pass per sample and class, sums by loops."""
    rows = []
    for sample, classes in zip(image, class_idx.tolist(), strict=True):
        for c in classes:
            features = network[: layer + 1](sample[None]).detach().requires_grad_(True)
            network[layer + 1 :](features)[0, c].backward()
            gradient = features.grad[0]
            heatmap = torch.zeros_like(gradient[0])
            for k in range(len(gradient)):
                heatmap += gradient[k].sum() / gradient[k].numel() * features.detach()[0, k]
            rows.append(heatmap.clamp(min=0) if relu else heatmap)
    return torch.stack(rows).reshape(*class_idx.shape, *rows[0].shape)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2, 4])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_value(spatial_dims: int, layer: int, relu: bool) -> None:
    network = classifier(spatial_dims).double().eval()
    image = torch.rand(2, 1, *(5,) * spatial_dims, dtype=torch.float64)
    class_idx = torch.tensor([[0, 2, 2], [1, 0, 2]])
    heatmap = GradCAM(str(layer), relu=relu)(record(network, image, [str(layer)]), class_idx)
    torch.testing.assert_close(heatmap.detach(), naive(network, image, layer, class_idx, relu))


def test_one_class_is_the_same_as_a_column() -> None:
    trace = record(classifier(), torch.rand(2, 1, 5, 5, 5), ["1"])
    one = GradCAM("1")(trace, torch.tensor([2, 0]))
    assert one.shape == (2, 1, 5, 5, 5)
    assert torch.equal(one, GradCAM("1")(trace, torch.tensor([[2], [0]])))


@pytest.mark.parametrize("training", [True, False])
def test_weight_gradients_by_finite_differences(training: bool) -> None:
    network = classifier().double().train(training)
    image, direction = torch.rand(2, 1, 5, 5, 5, dtype=torch.float64), torch.randn(2, 2, 5, 5, 5, dtype=torch.float64)

    def value() -> Tensor:
        trace = record(network, image, ["1"], update_statistics=False)
        return (GradCAM("1", relu=False)(trace, torch.tensor([[0, 1], [2, 0]])) * direction).sum()

    parameters = [network[0].weight, network[2].weight, network[3].weight, network[7].weight]
    for parameter, gradient in zip(parameters, torch.autograd.grad(value(), parameters), strict=True):
        for index in (0, parameter.numel() - 1):
            step, flat = 1e-5, parameter.data.view(-1)
            flat[index] += step
            above = value()
            flat[index] -= 2 * step
            difference = (above - value()) / (2 * step)
            flat[index] += step
            torch.testing.assert_close(gradient.flatten()[index], difference.detach(), rtol=1e-5, atol=1e-8)


def test_no_graph_under_no_grad() -> None:
    trace = record(classifier(), torch.rand(2, 1, 5, 5, 5), ["1"])
    with torch.no_grad():
        quiet = GradCAM("1")(trace, torch.tensor([0, 1]))
    loud = GradCAM("1")(trace, torch.tensor([0, 1]))
    assert not quiet.requires_grad
    assert loud.requires_grad
    assert torch.equal(quiet, loud)


def test_splitting_before_or_after_is_the_same() -> None:
    network = classifier().eval()
    trace = record(network, torch.rand(4, 1, 5, 5, 5), ["1"])
    class_idx = torch.tensor([[0, 1], [2, 0], [1, 1], [2, 1]])
    whole = GradCAM("1")(trace, class_idx).chunk(2)
    for half, rows, expected in zip(trace.split(), class_idx.chunk(2), whole, strict=True):
        torch.testing.assert_close(GradCAM("1")(half, rows), expected)


def test_heads_of_folded_modalities_each_explain_their_own() -> None:
    class PerModality(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = classifier()

        def forward(self, image: Tensor) -> Tensor:
            return self.branch(image.flatten(0, 1).unsqueeze(1)).unflatten(0, image.shape[:2])

    network, image = PerModality().eval(), torch.rand(2, 3, 5, 5, 5)
    heatmap = GradCAM("branch.1")(record(network, image, ["branch.1"]), torch.tensor([[0, 1], [2, 0]]))
    assert heatmap.shape == (6, 2, 5, 5, 5)
    alone = record(network.branch, image[1, 1:2, None], ["1"])
    torch.testing.assert_close(heatmap[4:5], GradCAM("1")(alone, torch.tensor([[2, 0]])))


def test_float16_gradients_do_not_underflow() -> None:
    """The gradient of an average over 32^3 voxels, 3e-5 times a weight of 1e-3, is below the smallest float16."""
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 1))
    with torch.no_grad():
        network[3].weight.fill_(1e-3)
    image = torch.rand(1, 1, 32, 32, 32)
    expected = GradCAM("0", relu=False)(record(network, image, ["0"]), torch.tensor([0]))
    with torch.autocast("cpu", dtype=torch.float16):
        trace = record(network, image, ["0"])
        assert trace.features["0"].dtype == torch.float16
        found = GradCAM("0", relu=False)(trace, torch.tensor([0]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=1e-9)


def test_bfloat16_autocast_is_close() -> None:
    network, image = classifier().eval(), torch.rand(2, 1, 5, 5, 5)
    expected = GradCAM("2", relu=False)(record(network, image, ["2"]), torch.tensor([0, 1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = GradCAM("2", relu=False)(record(network, image, ["2"]), torch.tensor([0, 1]))
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def dense() -> nn.Module:
    return DenseNet(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)


def segmenter() -> nn.Module:
    return SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,))


def swin() -> nn.Module:
    return SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2)


def vit() -> nn.Module:
    size = {"hidden_size": 24, "mlp_dim": 24, "num_layers": 2, "num_heads": 2}
    return ViT(1, (16, 16), (4, 4), classification=True, spatial_dims=2, **size)


needs_einops = pytest.mark.skipif(find_spec("einops") is None, reason="MONAI's transformers need einops")
NETWORKS = [
    pytest.param(dense, (32, 32), {"layer": "features.denseblock1"}, id="DenseNet"),
    pytest.param(dense, (32, 32), {"layer": "class_layers.relu"}, id="DenseNet, last"),
    pytest.param(
        lambda: resnet18(spatial_dims=2, n_input_channels=1, num_classes=3),
        (32, 32),
        {"layer": "layer4"},
        id="ResNet18",
    ),
    pytest.param(segmenter, (8, 8, 8), {"layer": "down_layers.1", "score": positive_score}, id="SegResNet"),
    pytest.param(swin, (64, 64), {"layer": "encoder10"}, id="SwinUNETR", marks=needs_einops),
    pytest.param(swin, (64, 64), {"layer": "swinViT.layers3.0"}, id="SwinUNETR, stage", marks=needs_einops),
    pytest.param(
        swin,
        (64, 64),
        {"layer": "swinViT.layers1.0.blocks.0", "reshape": ChannelsLast()},
        id="SwinUNETR, block",
        marks=needs_einops,
    ),
    pytest.param(
        vit, (16, 16), {"layer": "blocks.0", "reshape": TokenGrid((4, 4), skip=1)}, id="ViT", marks=needs_einops
    ),
]


@pytest.mark.parametrize(("build", "size", "arguments"), NETWORKS)
def test_networks_of_monai(build: Callable[[], nn.Module], size: tuple[int, ...], arguments: dict[str, Any]) -> None:
    network = build()
    attribute = GradCAM(relu=False, **arguments)
    trace = record(network, torch.rand(2, 1, *size), attribute.layers)
    heatmap = attribute(trace, torch.tensor([[0, 1], [1, 1]]))
    assert heatmap.shape[:2] == (2, 2)
    assert heatmap.ndim == 2 + len(size)
    assert heatmap.isfinite().all()
    assert heatmap.abs().sum() > 0
    heatmap.square().sum().backward()
    touched = [parameter for parameter in network.parameters() if parameter.grad is not None]
    assert any(parameter.grad.abs().sum() > 0 for parameter in touched)


@needs_einops
def test_tokens_without_reshape() -> None:
    network = vit()
    trace = record(network, torch.rand(1, 1, 16, 16), ["blocks.0"])
    with pytest.raises(
        ValueError, match=r"needs features B C and 2 spatial dimensions, got \(1, 17, 24\); pass reshape"
    ):
        GradCAM("blocks.0")(trace, torch.tensor([0]))


def test_recorded_without_gradients() -> None:
    with torch.no_grad():
        trace = record(classifier(), torch.rand(1, 1, 5, 5, 5), ["1"])
    with pytest.raises(ValueError, match="layer '1' or the logits carry no gradient: record the trace with gradients"):
        GradCAM("1")(trace, torch.tensor([0]))


def test_layer_that_does_not_lead_to_the_logits() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.main = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            return self.main(image).mean((2, 3)), self.side(image)

    with pytest.raises(ValueError, match="the logits do not depend on layer 'side'"):
        GradCAM("side")(record(Side(), torch.rand(1, 1, 4, 4), ["side"]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("class_idx", "error", "message"),
    [
        ([3], ValueError, r"class_idx must be in 0..2, got \[3\]"),
        ([0, 1, 1], ValueError, r"class_idx of shape B or B T for 1 entries, got \(3,\)"),
        ([0.0], TypeError, "torch.long, got torch.float32"),
    ],
)
def test_wrong_classes(class_idx: list[Any], error: type[Exception], message: str) -> None:
    trace = record(classifier(), torch.rand(1, 1, 5, 5, 5), ["1"])
    with pytest.raises(error, match=message):
        GradCAM("1")(trace, torch.tensor(class_idx))


def test_not_recorded() -> None:
    with pytest.raises(ValueError, match=r"layer '4' was not recorded: expected one of \['1'\]"):
        GradCAM("4")(record(classifier(), torch.rand(1, 1, 5, 5, 5), ["1"]), torch.tensor([0]))
