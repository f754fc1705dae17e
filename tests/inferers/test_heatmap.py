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
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SegResNet
from monai.utils import CommonKeys
from torch import Tensor, nn

from monai_rrr.attribution import CAM, GradCAM, normalize_max, positive_score, record, resize_heatmap
from monai_rrr.inferers.heatmap import HeatmapInferer


def classifier(dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm3d(4),
        nn.Softplus(),
        nn.Dropout3d(dropout),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


IMAGE_SIZE = (8, 6, 4)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 2, *IMAGE_SIZE)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_value_in_every_grad_mode(image: Tensor, context: Any) -> None:
    network = classifier().eval()
    trace = record(network, image, ["2"])
    expected = GradCAM("2")(trace, torch.tensor([[1, 2], [1, 2]])).detach()
    with context():
        heatmap = HeatmapInferer(GradCAM("2"), class_idx=[1, 2])(image * 1, network)
    assert not heatmap.requires_grad
    assert heatmap.dtype == torch.float32
    torch.testing.assert_close(heatmap.clone(), resize_heatmap(expected, IMAGE_SIZE))


def test_predicted_class_by_default(image: Tensor) -> None:
    network = classifier().eval()
    with torch.no_grad():
        network[6].weight[:, :2] *= 10
    image[1] *= -20
    predicted = network(image).argmax(1)
    heatmap = HeatmapInferer(CAM("2", "6"))(image, network)
    assert heatmap.shape == (2, 1, *IMAGE_SIZE)
    for sample in range(2):
        alone = HeatmapInferer(CAM("2", "6"), class_idx=int(predicted[sample]))(image[sample : sample + 1], network)
        torch.testing.assert_close(heatmap[sample : sample + 1], alone)


def test_normalize_acts_on_the_grid_of_the_image(image: Tensor) -> None:
    heatmap = HeatmapInferer(CAM("2", "6"), class_idx=0, normalize=normalize_max)(image, classifier())
    assert heatmap.shape == (2, 1, *IMAGE_SIZE)
    assert heatmap.amin() >= 0
    assert heatmap.flatten(2).amax(2).flatten().tolist() == pytest.approx([1, 1])


def test_meta_data_are_kept(image: Tensor) -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    inputs = MetaTensor(image.double(), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    heatmap = HeatmapInferer(CAM("2", "6"), class_idx=0)(inputs, classifier().double())
    assert isinstance(heatmap, MetaTensor)
    assert torch.equal(heatmap.affine, affine)
    assert heatmap.meta["filename_or_obj"] == "a.nii.gz"
    assert heatmap.dtype == torch.float32
    assert type(HeatmapInferer(CAM("2", "6"), class_idx=0)(image, classifier())) is Tensor


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attribute", [CAM("2", "6"), GradCAM("2")])
def test_nothing_is_touched(image: Tensor, training: bool, attribute: Any) -> None:
    network = classifier(dropout=0.5).train(training)
    network[0].weight.requires_grad_(False)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 2.5)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random, given = torch.random.get_rng_state(), image.clone()
    with torch.no_grad():
        HeatmapInferer(attribute, class_idx=0)(image, network)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(module.training is training for module in network.modules())
    assert [parameter.requires_grad for parameter in network.parameters()] == [False] + [True] * 5
    assert all((parameter.grad == 2.5).all() for parameter in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(not module._forward_hooks and not module._backward_hooks for module in network.modules())
    assert torch.equal(image, given)
    assert not image.requires_grad


def test_frozen_network_can_be_explained(image: Tensor) -> None:
    network = classifier().eval()
    expected = HeatmapInferer(GradCAM("2"), class_idx=0)(image, network)
    assert torch.equal(HeatmapInferer(GradCAM("2"), class_idx=0)(image, network.requires_grad_(False)), expected)


def test_segmentation_network_with_frozen_parameters_and_keyword_arguments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,))

        def forward(self, image: Tensor, scale: float) -> Tensor:
            return self.network(image) * scale

    network, image = Scaled().eval().requires_grad_(False), torch.rand(1, 1, 8, 8, 8)
    inferer = HeatmapInferer(GradCAM("network.down_layers.1", relu=False, score=positive_score), class_idx=[0, 2])
    one, double = inferer(image, network, scale=1.0), inferer(image, network, scale=2.0)
    assert one.shape == (1, 2, 8, 8, 8)
    assert one.abs().sum() > 0
    torch.testing.assert_close(double, 2 * one)


def test_in_an_evaluator(image: Tensor) -> None:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{CommonKeys.IMAGE: image, CommonKeys.LABEL: torch.zeros(2, 1, *IMAGE_SIZE)}],
        network=classifier(),
        inferer=HeatmapInferer(GradCAM("2"), class_idx=1),
        decollate=False,
    )
    evaluator.run()
    assert evaluator.state.output[CommonKeys.PRED].shape == (2, 1, *IMAGE_SIZE)


def test_in_sliding_windows(image: Tensor) -> None:
    network, inferer = classifier().eval(), HeatmapInferer(CAM("2", "6"), class_idx=1)
    windows = SlidingWindowInferer((4, 6, 4), overlap=0.0)
    stitched = windows(image, lambda window: inferer(window, network))
    expected = torch.cat([inferer(part, network) for part in image.split(4, dim=2)], dim=2)
    torch.testing.assert_close(stitched, expected)


@pytest.mark.parametrize("class_idx", [-1, [], [0, -2]])
def test_wrong_class_idx(class_idx: Any) -> None:
    with pytest.raises(ValueError, match="class_idx must name at least one class, 0 or more, got"):
        HeatmapInferer(GradCAM("2"), class_idx=class_idx)


def test_class_that_the_network_lacks(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"class_idx must be in 0..2, got \[1, 3\]"):
        HeatmapInferer(GradCAM("2"), class_idx=[1, 3])(image, classifier())


def test_segmentation_network_needs_a_class() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1))
    with pytest.raises(ValueError, match=r"logits \(1, 2, 4, 4, 4\)\) predicts a class per voxel: give class_idx"):
        HeatmapInferer(GradCAM("0"))(torch.rand(1, 1, 4, 4, 4), network)


def test_positional_arguments_and_functions_are_refused(image: Tensor) -> None:
    with pytest.raises(TypeError, match="keyword arguments only, got 1 positional"):
        HeatmapInferer(GradCAM("2"))(image, classifier(), 3)
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Module as network, got function"):
        HeatmapInferer(GradCAM("2"))(image, lambda x: x)
