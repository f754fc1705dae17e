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


"""Probabilities of the consensus and of every annotator."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet

from monai_rrr.errors import InferenceError
from monai_rrr.inferers import AnnotatorInferer, tendency_maps
from monai_rrr.networks import AnnotatorTendencyNet


def make_network(output: str = "tendency") -> AnnotatorTendencyNet:
    torch.manual_seed(0)
    backbone = UNet(3, in_channels=4, out_channels=8, channels=(4, 8), strides=(2,))
    network = AnnotatorTendencyNet(
        ["a", "b"], backbone=backbone, features=8, width=8, slots=2, shared_slots=2, queue=1024, output=output
    )
    with torch.no_grad():
        for tendency in network.tendencies:
            tendency.gamma.fill_(1.0)
    return network.eval()


def make_image() -> torch.Tensor:
    image = torch.randn(2, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    image[:, :, :3] = 0
    return image


@pytest.mark.parametrize("output", ["tendency", "consensus"])
@torch.no_grad()
def test_is_what_the_maps_say_inside_the_brain(output: str) -> None:
    network, image = make_network(output), make_image()
    found = AnnotatorInferer()(MetaTensor(image), network)
    expected = tendency_maps(network, image).probability
    torch.testing.assert_close(found[..., 3:, :, :], expected[..., 3:, :, :])
    assert not torch.equal(found[:, 1], found[:, 2])
    assert (found[:, :, 0, :3] == 1).all(), "background outside the brain"
    assert (found[:, :, 1:, :3] == 0).all()


@torch.no_grad()
def test_flips_are_averaged() -> None:
    network, image = make_network(), make_image()
    plain = AnnotatorInferer()
    mirrored = plain(image.flip(3), network).flip(4)
    torch.testing.assert_close(AnnotatorInferer([1])(image, network), (plain(image, network) + mirrored) / 2)


def test_refusals() -> None:
    network = make_network()
    with pytest.raises(ValueError, match="flips must be axes"):
        AnnotatorInferer([3])
    with torch.no_grad():
        network.consensus_head.bias[1] = torch.inf
    with pytest.raises(InferenceError, match="finite") as caught, torch.no_grad():
        AnnotatorInferer()(make_image(), network, case_id=["x", "y"])
    assert caught.value.case_id == "x"
