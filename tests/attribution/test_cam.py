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

from monai_rrr.attribution import CAM, GradCAM, record


class Classifier(nn.Module):
    """Trunk, global average, and a head that is linear or a convolution of kernel size 1."""

    def __init__(self, spatial_dims: int = 3, conv_head: bool = False) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        self.trunk = nn.Sequential(conv(2, 4, 3, padding=1), nn.Softplus())
        self.head: nn.Module = conv(4, 5, 1) if conv_head else nn.Linear(4, 5)
        self.conv_head = conv_head

    def forward(self, image: Tensor) -> Tensor:
        features = self.trunk(image)
        if self.conv_head:
            return self.head(features).flatten(2).mean(2)
        return self.head(features.flatten(2).mean(2))


def naive(features: Tensor, weight: Tensor, class_idx: Tensor) -> Tensor:
    """Follow the equation, voxel by voxel."""
    result = torch.zeros(*class_idx.shape, *features.shape[2:], dtype=features.dtype)
    count = features[0, 0].numel()
    for b, t in torch.cartesian_prod(torch.arange(class_idx.shape[0]), torch.arange(class_idx.shape[1])).tolist():
        for k in range(features.shape[1]):
            result[b, t] += weight[class_idx[b, t], k] * features[b, k] / count
    return result


@pytest.mark.parametrize("conv_head", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_value_and_sum(spatial_dims: int, conv_head: bool) -> None:
    network = Classifier(spatial_dims, conv_head).double()
    trace = record(network, torch.rand(2, 2, *(4,) * spatial_dims, dtype=torch.float64), ["trunk"])
    class_idx = torch.tensor([[0, 4, 2], [1, 1, 3]])
    heatmap = CAM("trunk", "head")(trace, class_idx)
    weight = network.head.weight.flatten(1)
    torch.testing.assert_close(heatmap, naive(trace.features["trunk"], weight, class_idx))
    expected = trace.logits.gather(1, class_idx) - network.head.bias[class_idx]
    torch.testing.assert_close(heatmap.flatten(2).sum(2), expected)


@pytest.mark.parametrize("conv_head", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_grad_cam_equals_cam_for_averaged_linear_head(spatial_dims: int, conv_head: bool) -> None:
    network = Classifier(spatial_dims, conv_head).double()
    trace = record(network, torch.rand(2, 2, *(4,) * spatial_dims, dtype=torch.float64), ["trunk"])
    class_idx = torch.tensor([[0, 4, 2], [1, 1, 3]])
    cam = CAM("trunk", "head")(trace, class_idx)
    torch.testing.assert_close(GradCAM("trunk")(trace, class_idx), cam.relu())
    torch.testing.assert_close(GradCAM("trunk", relu=False)(trace, class_idx), cam)
    voxels = 4**spatial_dims
    unscaled = torch.einsum("bk...,btk->bt...", trace.features["trunk"], network.head.weight.flatten(1)[class_idx])
    torch.testing.assert_close(GradCAM("trunk")(trace, class_idx) * voxels, unscaled.relu())


def test_same_weight_gradients_as_grad_cam() -> None:
    network = Classifier().double()
    trace = record(network, torch.rand(2, 2, 4, 4, 4, dtype=torch.float64), ["trunk"])
    class_idx, parameters = torch.tensor([[0, 4], [1, 3]]), [network.trunk[0].weight, network.head.weight]
    losses = [a(trace, class_idx).pow(3).sum() for a in (CAM("trunk", "head"), GradCAM("trunk", relu=False))]
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses)
    for one, other in zip(first, second, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


def test_one_class_per_sample() -> None:
    trace = record(Classifier(), torch.rand(3, 2, 4, 4, 4), ["trunk"])
    one = CAM("trunk", "head")(trace, torch.tensor([2, 0, 4]))
    assert one.shape == (3, 1, 4, 4, 4)
    torch.testing.assert_close(
        one, CAM("trunk", "head")(trace, torch.arange(5).expand(3, -1))[range(3), [2, 0, 4]][:, None]
    )


def test_modalities_folded_into_the_batch_axis() -> None:
    trace = record(Classifier(), torch.rand(6, 2, 4, 4, 4), ["trunk"])
    folded = CAM("trunk", "head")(trace, torch.tensor([2, 0]))
    torch.testing.assert_close(folded, CAM("trunk", "head")(trace, torch.tensor([2, 2, 2, 0, 0, 0])))


def test_half_precision_features_give_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = record(Classifier(), torch.rand(2, 2, 4, 4, 4), ["trunk.0"])
        assert trace.features["trunk.0"].dtype == torch.bfloat16
        assert CAM("trunk.0", "head")(trace, torch.tensor([0, 1])).dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "head", "class_idx", "error", "message"),
    [
        ("other", "head", [0, 0], ValueError, r"layer 'other' was not recorded: expected one of \['trunk'\]"),
        ("trunk", "nothing", [0, 0], ValueError, "Classifier has no layer 'nothing' to take as head"),
        ("trunk", "trunk.1", [0, 0], TypeError, "head 'trunk.1' must be a Linear .*got Softplus"),
        ("trunk", "trunk.0", [0, 0], ValueError, r"must have kernel size 1 and 1 group, got size \(3, 3, 3\)"),
        ("trunk", "head", [0, 5], ValueError, r"class_idx must be in 0..4, got \[0, 5\]"),
        ("trunk", "head", [-1, 0], ValueError, r"class_idx must be in 0..4, got \[-1, 0\]"),
        ("trunk", "head", [0.0, 1.0], TypeError, "torch.long, got torch.float32"),
        ("trunk", "head", [0, 1, 2], ValueError, r"class_idx of shape B or B T for 2 entries, got \(3,\)"),
        ("trunk", "head", [[[0]], [[1]]], ValueError, r"class_idx of shape B or B T for 2 entries, got \(2, 1, 1\)"),
    ],
)
def test_exception(layer: str, head: str, class_idx: list[int], error: type[Exception], message: str) -> None:
    trace = record(Classifier(), torch.rand(2, 2, 4, 4, 4), ["trunk"])
    with pytest.raises(error, match=message):
        CAM(layer, head)(trace, torch.tensor(class_idx))


def test_head_that_does_not_fit_the_layer() -> None:
    trace = record(Classifier(), torch.rand(2, 2, 4, 4, 4), ["head", "trunk"])
    with pytest.raises(
        ValueError, match=r"head 'head' expects features of shape B 4 h \[w d\], got \(2, 5\) from layer"
    ):
        CAM("head", "head")(trace, torch.tensor([0, 1]))
