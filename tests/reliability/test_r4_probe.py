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

"""Rows R4 and R5: what breaks a loss on heatmaps is named when a run is set up; what works, on MONAI's networks."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import TransformerBlock
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR, UNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_rrr.attribution import CAM, GradCAM, GuidedBackprop, InputTimesGradient
from monai_rrr.attribution.preflight import probe
from monai_rrr.errors import ConfigError

needs_einops = pytest.mark.skipif(find_spec("einops") is None, reason="MONAI's transformers need einops")
SIZE = (2, 1, 8, 8)


class Classifier(nn.Module):
    """Attention over patches, with the options that MONAI's networks have."""

    def __init__(self, flash: bool = False, reentrant: bool | None = None) -> None:
        super().__init__()
        self.embed, self.conv, self.head = nn.Conv2d(1, 8, 2, 2), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.use_flash_attention, self.reentrant = flash, reentrant

    def attend(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
        if self.use_flash_attention:
            mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
        else:
            mixed = (tokens @ tokens.transpose(2, 3) / 8**0.5).softmax(3) @ tokens
        return mixed.squeeze(1).transpose(1, 2).reshape(x.shape)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        x = self.attend(x) if self.reentrant is None else checkpoint(self.attend, x, use_reentrant=self.reentrant)
        return self.head(self.conv(x).flatten(2).mean(2))


def swin(size: int = 12) -> nn.Module:
    return SwinUNETR(in_channels=1, out_channels=2, feature_size=size, depths=(1, 1, 1, 1), spatial_dims=2)


class Transformer(nn.Module):
    def __init__(self, flash: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(1, 8, 2, 2), nn.Linear(8, 3)
        self.block = TransformerBlock(8, 8, 2, use_flash_attention=flash)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.block(self.embed(image).flatten(2).transpose(1, 2)).mean(1))


def refused(network: nn.Module, attribute: Any, size: tuple[int, ...] = SIZE) -> ConfigError:
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    random = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=r"\[explanation-unsupported\]") as caught:
        probe(network, size, attribute)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, buffers[name]) for name, value in network.named_buffers())
    assert all(p.grad is None for p in network.parameters())
    assert all(not module._forward_hooks for module in network.modules())
    assert not torch.overrides._get_current_function_mode_stack()
    return caught.value


def test_r4_what_works_passes() -> None:
    assert probe(Classifier(), SIZE, InputTimesGradient()) == []
    assert probe(Classifier(reentrant=False), SIZE, InputTimesGradient("none")) == []
    assert probe(Classifier(flash=True), SIZE, CAM("conv", "head")) == [], "the closed form needs no double backward"
    assert probe(Classifier(flash=True), SIZE, GradCAM("conv")) == [], "nor does a layer behind the attention"
    assert probe(Classifier(reentrant=True), SIZE, CAM("conv", "head")) == []


def test_r4_flash_attention() -> None:
    error = refused(Classifier(flash=True), InputTimesGradient())
    assert error.field == "use_flash_attention"
    assert "use_flash_attention=False" in str(error.hint)


@needs_einops
def test_r4_flash_attention_of_monai() -> None:
    error = refused(Transformer(flash=True), InputTimesGradient())
    assert error.field == "use_flash_attention"
    assert "the first 'block.attn'" in error.message
    assert all(
        "norm_cross" in n or "cross_attn" in n for n in probe(Transformer(flash=False), SIZE, InputTimesGradient())
    )


def test_r4_reentrant_checkpoint() -> None:
    for attribute in (InputTimesGradient("none"), GradCAM("embed")):
        error = refused(Classifier(reentrant=True), attribute)
        assert error.field == "use_reentrant"
        assert "use_reentrant=False" in str(error.hint)


@pytest.mark.parametrize("way", ["function", "method"])
def test_r4_compile(way: str) -> None:
    network = Classifier()
    compiled = torch.compile(network) if way == "function" else network
    if way == "method":
        network.conv.compile()
    error = refused(compiled, InputTimesGradient())
    assert error.field == "torch.compile"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_r4_no_grad(mode: Callable[[], Any]) -> None:
    network = Classifier()
    with mode():
        error = refused(network, InputTimesGradient())
    assert error.field == "no_grad"
    assert refused(Classifier().requires_grad_(False), InputTimesGradient()).field == "requires_grad"


@needs_einops
def test_r4_patch_too_small_for_swin_unetr() -> None:
    error = refused(swin(), InputTimesGradient(), (2, 1, 40, 64))
    assert error.field == "image_size"
    assert "(2, 1, 40, 64)" in error.message
    assert "divisible" in error.message


def test_r4_patch_too_small_for_instance_normalization() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, 8, 1), nn.InstanceNorm2d(4), nn.Flatten())
    error = refused(network, InputTimesGradient())
    assert error.field == "image_size"
    assert "more than 1 spatial element" in error.message


def test_r4_layer_and_attributor_that_do_not_fit() -> None:
    assert (
        refused(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten()), GuidedBackprop()).field == "GuidedBackprop"
    )
    assert refused(Classifier(), CAM("conv", "embed")).field == "CAM"


def unet() -> nn.Module:
    return UNet(3, 1, 2, channels=(4, 8), strides=(2,))


def segresnet() -> nn.Module:
    return SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,))


def dynunet() -> nn.Module:
    return DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 1], [2, 1], filters=[4, 8, 8])


def unetr() -> nn.Module:
    return UNETR(1, 2, (16, 16), feature_size=4, hidden_size=12, mlp_dim=12, num_heads=2, spatial_dims=2)


MATRIX = [
    pytest.param(unet, (8, 8, 8), "", id="UNet"),
    pytest.param(segresnet, (8, 8, 8), "", id="SegResNet"),
    pytest.param(dynunet, (8, 8, 8), "", id="DynUNet"),
    pytest.param(unetr, (16, 16), "cross_attn", id="UNETR", marks=needs_einops),
    pytest.param(swin, (64, 64), "", id="SwinUNETR", marks=needs_einops),
]


@pytest.mark.parametrize(
    "attribute",
    [InputTimesGradient(), InputTimesGradient("none"), GuidedBackprop()],
    ids=["input_times_gradient", "input_times_gradient_plain", "guided_backprop"],
)
@pytest.mark.parametrize(("build", "size", "idle"), MATRIX)
def test_r5_networks_of_monai(build: Callable[[], nn.Module], size: tuple[int, ...], idle: str, attribute: Any) -> None:
    network = build()
    names = probe(network, (2, 1, *size), attribute)
    print(f"{type(network).__name__}: {len(names)} parameters without gradient: {names}")
    assert all(idle and idle in name for name in names)
    assert bool(names) == bool(idle)
