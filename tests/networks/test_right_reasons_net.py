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


"""One network for class maps, consensus and annotators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import UNet

from monai_rrr.attribution import ClassMap, record
from monai_rrr.networks import AnnotatorTendencyNet, MultimodalCAMNet, RightReasonsNet

LAYERS = ("annotator_logits", "embedding", "signed_distance", "kernels", "scale", "prior")
BANKS = ("shared_prototypes", "tendency_prototypes")


def make(output: str = "all", share: str = "norm", stride: int = 2) -> RightReasonsNet:
    decoder = UNet(3, in_channels=6, out_channels=8, channels=(4, 8), strides=(2,), norm="batch")
    tendency = AnnotatorTendencyNet(["a", "b"], backbone=decoder, features=8, width=16, slots=2, queue=1024)
    cam = MultimodalCAMNet(channels=(4,), share=share, stride=stride)
    return RightReasonsNet(cam, tendency, features=6, output=output)


@pytest.fixture
def image() -> torch.Tensor:
    image = torch.rand(2, 4, 8, 8, 4) + 0.1
    image[:, :, :2] = 0
    return image


@pytest.mark.parametrize("share", ["norm", "none", "all"])
@pytest.mark.parametrize("stride", [1, 2])
def test_shapes(image: torch.Tensor, share: str, stride: int) -> None:
    found = make(share=share, stride=stride)(image)
    assert found.class_scores.shape == (2, 4, 3)
    assert found.consensus.shape == (2, 4, 8, 8, 4)
    assert found.annotators.shape == (2, 2, 4, 8, 8, 4)


def test_consensus_is_one_tensor_and_the_same(image: torch.Tensor) -> None:
    network = make().eval()
    found = network(image)
    network.output = "consensus"
    torch.testing.assert_close(network(image), found.consensus)
    torch.testing.assert_close(found.annotators, found.consensus[:, None].expand_as(found.annotators))


def test_layers_of_both_parts_can_be_recorded(image: torch.Tensor) -> None:
    network = make().eval()
    names = ("cam.class_maps", "cam.reliability", "class_scores", "consensus", *LAYERS, *BANKS)
    trace = record(network, image, names)
    found = network(image)
    assert trace.logits.shape == (2, 4, 3)
    torch.testing.assert_close(trace.features["class_scores"], found.class_scores)
    torch.testing.assert_close(trace.features["consensus"], found.consensus)
    torch.testing.assert_close(trace.features["annotator_logits"], found.annotators)
    assert ClassMap("cam.class_maps")(trace, torch.zeros(2, 1, dtype=torch.long)).shape == (2, 1, 4, 4, 4, 4)


def test_class_scores_are_those_of_the_cam_network(image: torch.Tensor) -> None:
    network = make().eval()
    torch.testing.assert_close(network(image).class_scores, network.cam(image))


@pytest.mark.parametrize("subset", range(1, 16))
def test_every_subset_of_the_modalities(image: torch.Tensor, subset: int) -> None:
    """An absent modality changes nothing, whatever its file holds, and is as good as one that is 0 everywhere."""
    network = make().eval()
    present = torch.tensor([bool(subset >> m & 1) for m in range(4)]).expand(2, -1)
    erased = image * present[:, :, None, None, None]
    other = torch.where(present[:, :, None, None, None], image, 7.0 * image)
    with torch.no_grad():
        given, said, inferred = network(other, present), network(erased, present), network(erased)
    for one, two, three in zip(given[1:], said[1:], inferred[1:], strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)
    assert not said.class_scores[~present].any()


def test_nothing_present_is_finite() -> None:
    for part in make()(torch.zeros(1, 4, 8, 8, 4)):
        assert torch.isfinite(part).all()


def test_every_parameter_has_a_part_in_the_output(image: torch.Tensor) -> None:
    network = make()
    for tendency in network.tendency.tendencies:
        torch.nn.init.constant_(tendency.gamma, 0.1)  # 0 at the start, which stops the gradient of the kernels
    record_of: Any = record(network, image, ["signed_distance"])
    total = sum(part.square().sum() for part in network(image)) + record_of.features["signed_distance"].square().sum()
    total.backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_masks_reach_the_features_of_the_class_maps(image: torch.Tensor) -> None:
    network = make()
    network(image).consensus.square().sum().backward()
    assert network.cam.stem.weight.grad is not None
    assert network.cam.stem.weight.grad.abs().sum() > 0
    assert network.cam.head.weight.grad is None


def test_who_did_not_draw_gets_no_gradient(image: torch.Tensor) -> None:
    network = make()
    found = network(image, annotated=torch.tensor([[True, False]] * 2))
    found.annotators[:, 0].square().sum().backward()
    first, second = (tendency.gamma.grad for tendency in network.tendency.tendencies)
    assert first is not None
    assert second is None or not second.any()


def test_parts_are_at_hand() -> None:
    network = make()
    assert (network.annotators, network.num_classes) == (("a", "b"), 4)
    assert network.modalities == ("t1", "t1c", "t2", "flair")
    assert network.operating_point is network.cam.operating_point
    assert network.reliability is network.cam.reliability
    assert network.shared_bank is network.tendency.shared_bank
    assert network.tendency_bank is network.tendency.tendency_bank
    assert len(list(network.tendency_parameters())) == 5
    network.freeze_backbone = True
    network.train()
    assert network.freeze_backbone
    assert not network.tendency.backbone.training
    assert network.cam.training


def test_state_has_every_tensor_once() -> None:
    state = make().state_dict()
    assert len({value.data_ptr() for value in state.values() if value.numel()}) == sum(
        v.numel() > 0 for v in state.values()
    )
    again = make()
    again.load_state_dict(state)


def test_tracing_fits_other_sizes_and_subsets(image: torch.Tensor) -> None:
    network = make("consensus").eval()
    with torch.no_grad(), pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(network, image[:1], check_trace=False)
    larger = torch.rand(2, 4, 16, 8, 8)
    larger[0, 1] = 0
    with torch.no_grad():
        torch.testing.assert_close(traced(larger), network(larger))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"output": "maps"}, "output must be all or consensus, got 'maps'")],
)
def test_exception(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_wrong_images_are_refused() -> None:
    network = make()
    with pytest.raises(ValueError, match="expected B 4 H W D"):
        network(torch.rand(1, 3, 8, 8, 4))
    with pytest.raises(ValueError, match="present must be"):
        network(torch.rand(1, 4, 8, 8, 4), torch.ones(1, 3))
