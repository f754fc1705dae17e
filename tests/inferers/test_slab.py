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
from monai.data import MetaTensor
from torch import Tensor, nn

from monai_rrr.errors import InferenceError
from monai_rrr.inferers import SlabHeatmapInferer
from monai_rrr.networks import MultimodalCAMNet


class Pointwise(nn.Module):
    """Class maps that depend on the voxel alone: stitched slabs must equal the whole."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.class_maps, self.reliability = nn.Identity(), nn.Identity()
        self.stride, self.sizes, self.seen = stride, [], []
        self.frozen = nn.Sequential(nn.Dropout(0.5)).eval()
        self.trained = nn.Dropout(0.5)

    def forward(self, image: Tensor, present: Tensor) -> Tensor:
        assert not self.training
        assert not self.trained.training
        assert not torch.is_grad_enabled()
        self.sizes.append(tuple(image.shape))
        self.seen.append(present.clone())
        maps = torch.stack([image, 2 * image, -image], 2)
        self.reliability(torch.tensor([[0.25, 0.5, 1.0], [0.75, 0.5, 0.0]]))
        if self.stride > 1:
            maps = nn.functional.avg_pool3d(maps.flatten(1, 2), (2, 2, 1)).unflatten(1, maps.shape[1:3])
        return self.class_maps(maps).flatten(3).amax(3)


def make_image(batch: int = 1, depth: int = 11) -> Tensor:
    image = torch.randn(batch, 2, 6, 4, depth)
    image[..., 0, :, :] = 0
    return image


def whole(image: Tensor) -> Tensor:
    """Fused map, then the maps of the modalities."""
    maps = torch.sigmoid(torch.stack([image, 2 * image, -image], 2))
    weights = torch.tensor([[0.25, 0.5, 1.0], [0.75, 0.5, 0.0]])[None, :, :, None, None, None]
    every = torch.cat([(maps * weights).sum(1, keepdim=True), maps], 1)
    return every * (image != 0).any(1)[:, None, None]


@pytest.mark.parametrize("depth", [4, 11, 16])
@pytest.mark.parametrize("flips", [(), (0,), (0, 2)])
def test_stitched_slabs_equal_the_whole(depth, flips):
    image, network = make_image(2), Pointwise()
    every = SlabHeatmapInferer(depth, flips=flips, per_modality=True)(image, network)
    assert every.shape == (2, 3, 3, 6, 4, 11)
    torch.testing.assert_close(every, whole(image), atol=1e-5, rtol=1e-5)
    fused = SlabHeatmapInferer(depth, flips=flips)(image, network)
    torch.testing.assert_close(fused, every[:, 0])
    assert {size[-1] for size in network.sizes} == {depth}
    assert {size[2:4] for size in network.sizes} == {(6, 4)}


def test_modes_come_back_also_after_a_failure():
    network = Pointwise().train()
    network.frozen.eval()
    modes = [module.training for module in network.modules()]
    assert len(set(modes)) == 2
    SlabHeatmapInferer(4)(make_image(), network)
    assert [module.training for module in network.modules()] == modes
    with pytest.raises(InferenceError, match=r"\[heatmap-not-finite\] field WT: expected finite values, got 120 NaN"):
        SlabHeatmapInferer(4)(torch.full((1, 2, 6, 4, 5), torch.nan), network)
    assert [module.training for module in network.modules()] == modes
    network.eval()
    SlabHeatmapInferer(4)(make_image(), network)
    assert not any(module.training for module in network.modules())


def test_absent_modalities():
    image, network = make_image(2), Pointwise()
    image[1, 0] = 0
    every = SlabHeatmapInferer(4, per_modality=True)(image, network)
    assert every[1, 1].abs().max() == 0
    # weight 0 for the only modality there: no evidence rather than a division by 0
    torch.testing.assert_close(every[1, 0, :2], every[1, 2, :2])
    assert every[1, 0, 2].abs().max() == 0
    assert all(bool(p.all()) or not p[:, 0].any() for p in network.seen), "each image with its own modalities"
    given = SlabHeatmapInferer(4, per_modality=True)(make_image(), network, present=torch.tensor([[False, True]]))
    assert given[0, 1].abs().max() == 0


def test_lower_resolution_comes_back_to_the_grid_of_the_image():
    image = make_image()
    found = SlabHeatmapInferer(4)(image, Pointwise(stride=2))
    assert found.shape == (1, 3, 6, 4, 11)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("flips", [(), (0, 1)])
def test_equals_the_network_of_the_project_in_one_slab(flips):
    network = MultimodalCAMNet(channels=(4,), stride=1)
    image = torch.randn(2, 4, 8, 8, 4)
    image[0, 1] = 0
    found = SlabHeatmapInferer(4, flips=flips)(MetaTensor(image), network)
    assert not found.requires_grad
    assert not isinstance(found, MetaTensor)
    network.output = "maps"
    if not flips:
        torch.testing.assert_close(found, network(image).detach())
    else:
        mirrors = [(), (2,), (3,), (2, 3)]
        mean = torch.stack([network(image.flip(m)).detach().flip(m) for m in mirrors]).mean(0)
        torch.testing.assert_close(found, mean)


def test_gradients_and_parameters_stay_as_they_are():
    network = MultimodalCAMNet(channels=(4,))
    network(torch.rand(1, 4, 4, 4, 2)).sum().backward()
    before = [p.grad.clone() for p in network.parameters()]
    SlabHeatmapInferer(2)(torch.rand(1, 4, 4, 4, 3), network)
    assert all(torch.equal(p.grad, b) for p, b in zip(network.parameters(), before, strict=True))
    assert all(not module._forward_hooks for module in network.modules())


def test_exception():
    with pytest.raises(ValueError, match=r"flips must be spatial axes 0 to 2, got \(0, 3\)"):
        SlabHeatmapInferer(4, flips=(0, 3))
    network = MultimodalCAMNet(channels=(4,))
    with torch.no_grad():
        network.head.bias.fill_(torch.nan)
    with pytest.raises(InferenceError, match=r"\[heatmap-not-finite\] field WT: expected finite values, got 64 NaN"):
        SlabHeatmapInferer(4)(torch.rand(1, 4, 4, 4, 4), network)
