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


"""Everything that a network has to say of a whole brain."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet

from monai_rrr.attribution import ClassMap
from monai_rrr.errors import InferenceError
from monai_rrr.inferers import RightReasonsInferer, SlabHeatmapInferer
from monai_rrr.networks import AnnotatorTendencyNet, MultimodalCAMNet, RightReasonsNet


@pytest.fixture(scope="module")
def network() -> RightReasonsNet:
    torch.manual_seed(0)
    decoder = UNet(3, in_channels=4, out_channels=4, channels=(4, 8), strides=(2,))
    tendency = AnnotatorTendencyNet(["a", "b"], backbone=decoder, features=4, width=8, slots=2, queue=1024)
    for one in tendency.tendencies:
        torch.nn.init.constant_(one.gamma, 1.0)
    return RightReasonsNet(MultimodalCAMNet(channels=(4,)), tendency, features=4, output="consensus")


@pytest.fixture
def image() -> torch.Tensor:
    image = torch.rand(2, 4, 8, 8, 6) + 0.1
    image[:, :, :2] = 0
    image[0, 3] = 0
    return image


def test_shapes_ranges_and_background(network: RightReasonsNet, image: torch.Tensor) -> None:
    found = RightReasonsInferer(depth=4, per_modality=True)(image, network)
    assert found["heatmap"].shape == (2, 5, 3, 8, 8, 6)
    assert found["class_score"].shape == (2, 3)
    assert found["annotators"].shape == (2, 3, 4, 8, 8, 6)
    for value in found.values():
        assert 0 <= value.min() <= value.max() <= 1
    torch.testing.assert_close(found["annotators"].sum(2), torch.ones(2, 3, 8, 8, 6))
    assert not found["heatmap"][:, :, :, :2].any()
    assert (found["annotators"][:, :, 0, :2] == 1).all()
    assert not found["heatmap"][0, 4].any(), "an absent modality has no heatmap"
    assert not torch.allclose(found["annotators"][:, 1], found["annotators"][:, 2])


def test_heatmaps_are_those_of_the_heatmap_inferer(network: RightReasonsNet, image: torch.Tensor) -> None:
    plain = SlabHeatmapInferer(4, flips=[0], attribute=ClassMap("cam.class_maps"), reliability="cam.reliability")
    expected = plain(image, network)
    torch.testing.assert_close(RightReasonsInferer(4, flips=[0])(image, network)["heatmap"], expected)


def test_one_slab_is_the_network_itself(network: RightReasonsNet, image: torch.Tensor) -> None:
    small = image[:, :, :, :, :4]
    found = RightReasonsInferer(depth=4)(small, network)
    inside = (small != 0).any(1)[:, None].expand(-1, 4, -1, -1, -1)
    with torch.no_grad():
        expected = network.eval()(small).softmax(1)
    torch.testing.assert_close(found["annotators"][:, 0][inside], expected[inside])


def test_absent_modalities_are_named_by_present(network: RightReasonsNet, image: torch.Tensor) -> None:
    present = torch.tensor([[True, True, True, False]] * 2)
    erased = image * present[:, :, None, None, None]
    given = RightReasonsInferer(depth=4)(image, network, present=present)
    for name, value in RightReasonsInferer(depth=4)(erased, network).items():
        torch.testing.assert_close(value, given[name])


def test_modes_stay_as_they_were(network: RightReasonsNet, image: torch.Tensor) -> None:
    network.train()
    RightReasonsInferer(depth=4)(image, network)
    assert all(module.training for module in network.modules())


def test_what_is_not_finite_is_refused(image: torch.Tensor) -> None:
    broken = RightReasonsNet(MultimodalCAMNet(channels=(4,)), features=16)
    torch.nn.init.constant_(broken.cam.head.bias, torch.inf)
    with pytest.raises(InferenceError, match="expected finite") as caught:
        RightReasonsInferer(depth=4)(torch.rand(1, 4, 8, 8, 4), broken, case_id=["x"])
    assert caught.value.case_id == "x"


def test_exception() -> None:
    with pytest.raises(ValueError, match="flips must be spatial axes"):
        RightReasonsInferer(4, flips=[3])
