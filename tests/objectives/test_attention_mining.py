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
from torch import Tensor, nn

from monai_rrr.attribution import CAM, ClassMap, GradCAM, Trace, record
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.objectives import AttentionMining, RightReasons

B, K, SIZE = 3, 2, (8, 8, 4)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Softplus())
        self.head = nn.Linear(4, K)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.trunk(image).flatten(2).mean(2))


def batch_of() -> dict[str, Any]:
    return {
        "image": torch.randn(B, 2, *SIZE),
        "class_label": torch.tensor([[1.0, 0], [1, 1], [0, 0]]),
        "iteration": 2,
    }


def trace_of(term: Any, batch: dict[str, Any], network: nn.Module | None = None) -> Trace:
    kwargs = {"present": batch["present"]} if "present" in batch else {}
    return record(network or Classifier(), batch["image"], term.layers, update_statistics=False, **kwargs)


@pytest.mark.parametrize("logit", [True, False])
def test_follows_the_equations(logit: bool) -> None:
    """The literal reading: all classes of a sample, one erased image each, filled with zeros."""
    term = AttentionMining(CAM("trunk", "head"), classes="positive", fill="zero", logit=logit)
    batch = batch_of()
    network = Classifier().eval()
    trace = trace_of(term, batch, network)
    scores = []
    for b, c in ((0, 0), (1, 0), (1, 1)):
        features, weight = trace.features["trunk"][b], network.head.weight[c]
        heatmap = sum(weight[k] * features[k] for k in range(4)).clamp(min=0)
        shown = torch.sigmoid(10.0 * (heatmap / heatmap.max().clamp(min=1e-8) - 0.5))
        score = network((batch["image"][b] * (1 - shown))[None])[0, c]
        scores.append(score if logit else score.sigmoid())
    torch.testing.assert_close(term(trace, batch), sum(scores) / 3)


def test_one_class_is_an_unbiased_estimate() -> None:
    batch, network = batch_of(), Classifier().eval()
    batch["class_label"] = torch.ones(B, K)
    one, every = (AttentionMining(CAM("trunk", "head"), classes=which) for which in ("one", "positive"))
    trace = trace_of(one, batch, network)
    with torch.no_grad():
        draws = [float(one(trace, {**batch, "iteration": i})) for i in range(150)]
        assert sum(draws) / len(draws) == pytest.approx(float(every(trace, batch)), abs=0.02)
        assert draws[3] == float(one(trace, {**batch, "iteration": 3}))


def test_normalization_is_by_sample_and_the_maximum_is_constant() -> None:
    term, batch, network = AttentionMining(CAM("trunk", "head")), batch_of(), Classifier().eval()
    chosen = torch.tensor([[0], [1], [0]])
    whole = term.shown(trace_of(term, batch, network), batch, chosen)
    for b in range(B):
        one = {"image": batch["image"][b : b + 1]}
        torch.testing.assert_close(term.shown(trace_of(term, one, network), one, chosen[b : b + 1]), whole[b : b + 1])
    maps = torch.tensor([[[[1.0, 4.0], [2.0, 0.0]]]], requires_grad=True)
    fixed = Trace(nn.Identity(), ("class_maps",), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1), {"class_maps": maps})
    AttentionMining(ClassMap()).shown(fixed, {}, torch.tensor([[0]])).sum().backward()
    slope = 10.0 * torch.sigmoid(10 * (maps.detach() / 4 - 0.5)) * (1 - torch.sigmoid(10 * (maps.detach() / 4 - 0.5)))
    torch.testing.assert_close(maps.grad[0, 0, 0], slope[0, 0, 0] / 4)


def test_map_of_zeros_erases_next_to_nothing() -> None:
    maps = torch.zeros(1, 1, 2, 2, requires_grad=True)
    fixed = Trace(nn.Identity(), ("class_maps",), torch.zeros(1, 1, 4, 4), torch.zeros(1, 1), {"class_maps": maps})
    shown = AttentionMining(ClassMap()).shown(fixed, {}, torch.tensor([[0]]))
    shown.sum().backward()
    torch.testing.assert_close(shown, torch.full((1, 1, 4, 4), -5.0).sigmoid())
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("second_pass", ["norm_frozen", "shared", "weights_frozen"])
def test_second_pass(second_pass: str) -> None:
    network, batch = Classifier(), batch_of()
    # a constant heatmap: gradient can reach the weights through the second pass only
    term = AttentionMining(GradCAM("trunk"), second_pass=second_pass)
    with torch.no_grad():
        fixed = trace_of(term, batch, network).features["trunk"].clone()
    leaf = fixed.requires_grad_(True)
    logits = network.head(leaf.flatten(2).mean(2)).detach() + leaf.sum() * 0 + leaf.flatten(1).sum(1, keepdim=True)
    trace = Trace(network, ("trunk",), batch["image"], logits, {"trunk": leaf})
    before = {name: value.clone() for name, value in network.named_buffers()}
    value = term(trace, batch)
    moved = any(not torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert moved == (second_pass == "shared")
    value.backward()
    reached = network.head.weight.grad is not None and bool(network.head.weight.grad.abs().sum() > 0)
    assert reached == (second_pass != "weights_frozen")
    assert leaf.grad.abs().sum() > 0


def test_weight_of_the_head_can_be_held_constant() -> None:
    """Eq. 1 of the paper, read literally: external supervision then trains the features only."""
    batch = {**batch_of(), "evidence_mask": torch.ones(B, 1, *SIZE)}
    for detach in (False, True):
        network = Classifier()
        term = RightReasons(CAM("trunk", "head", detach_weights=detach), "l2")
        term(trace_of(term, batch, network), batch).backward()
        assert (network.head.weight.grad is None) == detach
        assert network.trunk[0].weight.grad.abs().sum() > 0


def test_weight_gradient_by_finite_differences() -> None:
    batch, network = batch_of(), Classifier().double().eval()
    batch["image"] = batch["image"].double()
    term = AttentionMining(CAM("trunk", "head"), fill="mean")

    def value() -> Tensor:
        trace = trace_of(term, batch, network)
        with torch.no_grad():  # the maximum carries no gradient: hold it
            largest.append(CAM("trunk", "head")(trace, torch.zeros(B, dtype=torch.long)).abs().max())
        return term(trace, batch)

    largest: list[Tensor] = []
    bias = network.head.bias  # the heatmap does not depend on it, so nothing is held constant
    gradient = torch.autograd.grad(value(), bias)[0]
    for index in range(K):
        bias.data[index] += 1e-6
        above = value().detach()
        bias.data[index] -= 2e-6
        difference = (above - value().detach()) / 2e-6
        bias.data[index] += 1e-6
        torch.testing.assert_close(gradient[index], difference, rtol=1e-5, atol=1e-9)
    assert len(set(map(float, largest))) == 1


@pytest.mark.parametrize("fill", ["blur", "mean", "zero"])
def test_heads_of_modalities(fill: str) -> None:
    present = torch.tensor([[True, True], [False, True], [True, False]])
    image = torch.randn(B, 2, *SIZE) * present[:, :, None, None, None]
    image[..., :2, :, :] = 0
    batch = {**batch_of(), "image": image, "present": present, "brain": (image != 0).any(1, keepdim=True)}
    network = MultimodalCAMNet(["a", "b"], K, channels=(4,), stride=2)
    term = AttentionMining(ClassMap(), fill=fill, sigmoid=True, blur=2.0)
    trace = trace_of(term, batch, network)
    erased = term.erase(trace, batch, term.shown(trace, batch, torch.zeros(B, 1, dtype=torch.long)))
    assert (erased[~present] == 0).all(), "an absent modality stays absent"
    assert (erased[..., :2, :, :] == 0).all()
    value = term(trace, batch)
    value.backward()
    assert 0 < value < 1
    assert network.head.weight.grad.isfinite().all()


def test_no_positive_class_is_exactly_zero() -> None:
    term, batch = AttentionMining(CAM("trunk", "head")), {**batch_of(), "class_label": torch.zeros(B, K)}
    trace = trace_of(term, batch)
    value = term(trace, batch)
    value.backward()
    assert value == 0
    assert trace.network.head.weight.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fill": "noise"}, r"fill must be one of .*, got 'noise'"),
        ({"classes": "some"}, r"classes must be one of .*, got 'some'"),
        ({"second_pass": "eval"}, r"second_pass must be one of .*, got 'eval'"),
        ({"steepness": 0.0}, r"steepness and blur must be positive, got 0\.0 and 4\.0"),
    ],
)
def test_exception(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionMining(CAM("trunk", "head"), **arguments)
