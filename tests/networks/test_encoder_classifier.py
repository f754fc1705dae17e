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

from importlib.util import find_spec

import pytest
import torch
from monai.networks.nets import ViT
from monai.networks.nets.segresnet_ds import SegResEncoder
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from monai_rrr.attribution import CAM, GradCAM, record
from monai_rrr.networks import EncoderClassifier

needs_einops = pytest.mark.skipif(find_spec("einops") is None, reason="MONAI's transformers need einops")


def segres() -> tuple[EncoderClassifier, int, int]:
    return EncoderClassifier(SegResEncoder(3, 8, 2, blocks_down=(1, 1, 1)), 32, 3), 16, 4


def swin() -> tuple[EncoderClassifier, int, int]:
    encoder = SwinTransformer(2, 12, (2, 2, 2), (2, 2, 2), (1, 1, 1, 1), (1, 1, 2, 2))
    return EncoderClassifier(encoder, 192, 3), 32, 1


def vit() -> tuple[EncoderClassifier, int, int]:
    encoder = ViT(2, (16, 16, 16), (8, 8, 8), hidden_size=24, mlp_dim=24, num_layers=2, num_heads=2)
    return EncoderClassifier(encoder, 24, 3, output=0, grid=(2, 2, 2)), 16, 2


ENCODERS = [segres, pytest.param(swin, marks=needs_einops), pytest.param(vit, marks=needs_einops)]


@pytest.mark.parametrize("make", ENCODERS)
def test_closed_form_cam_is_grad_cam(make) -> None:
    network, size, grid = make()
    trace = record(network.eval(), torch.rand(2, 2, size, size, size), ["features"])
    assert trace.logits.shape == (2, 3)
    classes = torch.tensor([[0, 2], [1, 2]])
    heatmap = CAM("features", head="head")(trace, classes)
    assert heatmap.shape == (2, 2, grid, grid, grid)
    torch.testing.assert_close(heatmap, GradCAM("features", relu=False)(trace, classes))
    scores = heatmap.flatten(2).sum(2) + network.head.bias[classes]
    torch.testing.assert_close(scores, trace.logits.gather(1, classes))


def test_every_parameter_gets_a_gradient() -> None:
    network, size, _ = segres()
    network(torch.rand(2, 2, size, size, size)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


class Tokens(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        tokens = image.flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(tokens[:, :1], 1e6), tokens], dim=1)


def test_tokens_are_laid_out_without_the_class_token() -> None:
    image = torch.rand(1, 2, 2, 3, 4)
    network = EncoderClassifier(Tokens(), 2, 1, grid=(2, 3, 4))
    torch.testing.assert_close(record(network, image, ["features"]).features["features"], image)


class Mean(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean(2)


def test_exception() -> None:
    image = torch.rand(1, 2, 8, 8, 8)
    with pytest.raises(ValueError, match="expected channels, num_classes and grid from 1, got 0, 2 and None"):
        EncoderClassifier(nn.Identity(), 0, 2)
    with pytest.raises(ValueError, match=r"expected features B 3 and 3 spatial dimensions, got \(1, 2, 8, 8, 8\)"):
        EncoderClassifier(nn.Identity(), 3, 2)(image)
    with pytest.raises(ValueError, match=r"expected features B 2 and 3 spatial dimensions, got \(1, 2\)"):
        EncoderClassifier(nn.Sequential(nn.Flatten(2), Mean()), 2, 2)(image)
    with pytest.raises(ValueError, match=r"expected tokens B 27 2, got \(1, 2, 8, 8, 8\)"):
        EncoderClassifier(nn.Identity(), 2, 2, grid=(3, 3, 3))(image)

    class Empty(nn.Module):
        def forward(self, image: Tensor) -> None:
            return None

    with pytest.raises(TypeError, match="expected the encoder to return features, got NoneType"):
        EncoderClassifier(Empty(), 2, 2)(image)
