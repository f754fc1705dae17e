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

"""Terms on evidence masks, on networks of both kinds: with one head, and with one head per modality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_rrr.attribution import CAM, INPUT, ClassMap, GradCAM, HiResCAM, InputTimesGradient, Trace, record
from monai_rrr.losses import EvidenceLoss, ISNetLoss
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.objectives import InputGradientPenalty, RightReasons
from monai_rrr.objectives.evidence import choose_classes

B, K, SIZE = 3, 3, (8, 8, 4)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv3d(2, 4, 3, 2, 1), nn.GroupNorm(2, 4), nn.LeakyReLU(0.2), nn.Conv3d(4, 4, 1))
        self.head = nn.Linear(4, K)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.trunk(image).flatten(2).mean(2))


def plain_batch(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    mask = torch.zeros(B, K, *SIZE)
    mask[:, :, 2:6, 2:6, 1:3] = 1
    mask[1, 2] = 0
    return {
        "image": torch.randn(B, 2, *SIZE, dtype=dtype),
        "class_label": torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 1]]),
        "evidence_mask": mask,
        "has_mask": torch.tensor([True, True, False]),
        "case_id": ["a", "b", "c"],
        "iteration": 5,
    }


def trace_of(term: Any, batch: dict[str, Any], network: nn.Module | None = None) -> Trace:
    network = network or Classifier().to(batch["image"].dtype)
    kwargs = {"present": batch["present"]} if "present" in batch else {}
    return record(network, batch["image"], term.layers, **kwargs)


def multimodal_batch() -> dict[str, Any]:
    present = torch.tensor([[True, True], [False, True], [True, True]])
    image = torch.randn(B, 2, *SIZE) * present[:, :, None, None, None]
    image[..., :2, :, :] = 0
    return {**plain_batch(), "image": image, "present": present, "brain": (image != 0).any(1, keepdim=True)}


TERMS: dict[str, Callable[[], Any]] = {
    **{kind: lambda kind=kind: RightReasons(CAM("trunk", "head"), kind) for kind in (*EvidenceLoss.kinds, "isnet")},
    "grad_cam": lambda: RightReasons(GradCAM("trunk")),
    "hirescam": lambda: RightReasons(HiResCAM("trunk.1"), "outside_softplus", classes="all"),
    "ixg": lambda: RightReasons(InputTimesGradient("none", per_modality=True), "outside_square", classes="one"),
    "ixg_ln": lambda: RightReasons(InputTimesGradient(per_modality=True), "isnet", classes="one"),
    "input_penalty": lambda: InputGradientPenalty(),
}


@pytest.fixture(params=TERMS)
def term(request: pytest.FixtureRequest) -> Any:
    return TERMS[request.param]()


def test_energy_follows_the_equation() -> None:
    term, batch = RightReasons(CAM("trunk", "head")), plain_batch()
    trace = trace_of(term, batch)
    weight = trace.network.head.weight
    per_sample = []
    for b in (0, 1):
        values = []
        for c in range(K):
            if batch["class_label"][b, c] and batch["evidence_mask"][b, c].any():
                heatmap = sum(weight[c, k] * trace.features["trunk"][b, k] for k in range(4)).clamp(min=0)
                coarse = torch.zeros(4, 4, 2)
                for x, y, z in batch["evidence_mask"][b, c].nonzero().tolist():
                    coarse[x // 2, y // 2, z // 2] = 1
                values.append(1 - (heatmap * coarse).sum() / heatmap.sum())
        per_sample.append(sum(values) / len(values))
    torch.testing.assert_close(term(trace, batch), sum(per_sample) / 2)


def test_penalty_follows_the_equation() -> None:
    batch, network = plain_batch(), Classifier()
    batch["evidence_mask"] = (torch.rand(B, 1, 2, *SIZE) > 0.5).float()
    found = {}
    for exclusive in (True, False):
        term = InputGradientPenalty(exclusive)
        found[exclusive] = term(trace_of(term, batch, network), batch)
        values = []
        for b in (0, 1):
            leaf = batch["image"][b : b + 1].clone().requires_grad_(True)
            p = network(leaf).softmax(1) if exclusive else network(leaf).sigmoid()
            total = p.log().sum() if exclusive else (p.log() + (1 - p).log()).sum()
            gradient = torch.autograd.grad(total, leaf)[0][0]
            values.append((gradient * (1 - batch["evidence_mask"][b, 0])).square().sum())
        torch.testing.assert_close(found[exclusive], sum(values) / 2, rtol=1e-4, atol=1e-7)
    assert not torch.isclose(found[True], found[False])


def test_undecided_network_with_two_exclusive_classes_pays_nothing() -> None:
    batch, network = plain_batch(), Classifier()
    batch |= {"class_label": torch.tensor([0, 1, 1]), "evidence_mask": torch.zeros(B, 1, *SIZE)}
    network.head = nn.Linear(4, 2)
    nn.init.ones_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    term = InputGradientPenalty(exclusive=True)
    assert term(trace_of(term, batch, network), batch) < 1e-12


def test_gradient_reaches_the_weights_by_finite_differences(term: Any) -> None:
    batch = plain_batch(torch.float64)
    network = Classifier().double()

    def value() -> Tensor:
        return term(trace_of(term, batch, network), batch)

    free_of_maxima = isinstance(term, InputGradientPenalty) or term.loss in (
        "energy", "outside_softplus", "outside_norm", "isnet"
    )  # fmt: skip
    for parameter in (network.trunk[0].weight, network.trunk[3].weight, network.head.weight):
        gradient = torch.autograd.grad(value(), parameter)[0]
        assert gradient.abs().max() > 0
        if free_of_maxima:
            index = int(gradient.abs().argmax())
            flat, step = parameter.data.view(-1), 1e-6
            flat[index] += step
            above = value().detach()
            flat[index] -= 2 * step
            difference = (above - value().detach()) / (2 * step)
            flat[index] += step
            torch.testing.assert_close(gradient.flatten()[index], difference, rtol=1e-4, atol=1e-8)


def test_no_mask_in_the_batch_is_exactly_zero(term: Any) -> None:
    batch = {**plain_batch(), "has_mask": torch.zeros(B, dtype=torch.bool)}
    batch["evidence_mask"] = torch.full_like(batch["evidence_mask"], 0.0)
    trace = trace_of(term, batch)
    value = term(trace, batch)
    value.backward()
    assert value == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in trace.network.parameters())


def test_batch_of_mixed_masks_is_the_mean_of_the_masked_samples(term: Any) -> None:
    batch, network = plain_batch(), Classifier()
    if getattr(term, "classes", "all") == "one":  # the draw depends on the place in the batch
        batch["class_label"] = torch.eye(K)[[0, 1, 2]]
    whole = term(trace_of(term, batch, network), batch)
    each = []
    for index in (0, 1):
        one = {k: v[index : index + 1] if isinstance(v, Tensor) else v for k, v in batch.items()}
        each.append(term(trace_of(term, one, network), {**one, "case_id": [batch["case_id"][index]]}))
    torch.testing.assert_close(whole, sum(each) / 2)


def test_network_is_untouched(term: Any) -> None:
    batch = plain_batch()
    trace = trace_of(term, batch)
    for parameter in trace.network.parameters():
        parameter.grad = torch.full_like(parameter, 2.5)
    random = torch.random.get_rng_state()
    term(trace, batch)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert trace.network.training
    assert all((p.grad == 2.5).all() for p in trace.network.parameters())
    assert all(not m._forward_hooks for m in trace.network.modules())


@pytest.mark.parametrize("control", ["none", "random", "shuffled", "inverted"])
@pytest.mark.parametrize("loss", ["energy", "l2", "isnet"])
def test_heads_of_modalities(loss: str, control: str) -> None:
    batch = multimodal_batch()
    network = MultimodalCAMNet(["a", "b"], K, channels=(4,), stride=2)
    term = RightReasons(ClassMap(), loss, sigmoid=True, control=control)
    value = term(trace_of(term, batch, network), batch)
    value.backward()
    assert value > 0
    assert network.head.weight.grad.abs().sum() > 0
    absent = {**batch, "image": batch["image"].clone()}
    absent["evidence_mask"] = batch["evidence_mask"].clone()
    absent["evidence_mask"][2] = 1 - absent["evidence_mask"][2]
    if control in ("none", "inverted"):
        torch.testing.assert_close(value, term(trace_of(term, absent, network), absent), msg="sample 2 has no mask")


def test_absent_modality_holds_no_evidence() -> None:
    """The sigmoid of a map of zeros is not evidence: a sample with one modality counts that one only."""
    batch = multimodal_batch()
    network = MultimodalCAMNet(["a", "b"], K, channels=(4,), stride=2)
    term = RightReasons(ClassMap(), "energy", sigmoid=True)
    trace = trace_of(term, batch, network)
    batch["has_mask"] = torch.tensor([False, True, False])
    maps = trace.features["class_maps"][1, 1].sigmoid() * (batch["brain"][1, 0, ::2, ::2] > 0)
    coarse = nn.functional.max_pool3d(batch["evidence_mask"][1], (2, 2, 1))
    expected = 1 - (maps * coarse)[1].sum() / maps[1].sum()
    torch.testing.assert_close(term(trace, batch), expected)


def test_class_without_a_mask_counts_where_no_evidence_is_asked_for() -> None:
    batch = plain_batch()
    batch |= {"class_label": torch.tensor([[0.0, 0, 0]] * B), "evidence_mask": torch.zeros(B, K, *SIZE)}
    network = Classifier()
    for loss, counted in (("energy", False), ("isnet", False), ("outside_softplus", True), ("outside_square", True)):
        term = RightReasons(CAM("trunk", "head"), loss, classes="all")
        assert (term(trace_of(term, batch, network), batch) > 0) == counted


def test_one_class_is_an_unbiased_estimate_and_reproducible() -> None:
    batch, network = plain_batch(), Classifier()
    batch["class_label"] = torch.ones(B, K)
    batch["evidence_mask"][1, 2] = 1
    every, one = RightReasons(CAM("trunk", "head")), RightReasons(CAM("trunk", "head"), classes="one")
    trace = trace_of(every, batch, network)
    draws = [float(one(trace, {**batch, "iteration": i}).detach()) for i in range(400)]
    assert sum(draws) / len(draws) == pytest.approx(float(every(trace, batch).detach()), abs=0.02)
    assert len({round(d, 6) for d in draws}) == 9
    assert draws[7] == float(one(trace, {**batch, "iteration": 7}).detach())


def test_class_indices_choose_their_class() -> None:
    batch = {**plain_batch(), "class_label": torch.tensor([2, 0, -1])}
    trace = trace_of(RightReasons(CAM("trunk", "head")), batch)
    chosen = choose_classes(trace, batch, "positive")
    assert chosen.class_idx.tolist() == [[2], [0], [0]]
    assert chosen.weight.tolist() == [[1.0], [1.0], [0.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": "some"}, r"classes must be one of .*, got 'some'"),
        ({"control": "wrong"}, r"control must be one of .*, got 'wrong'"),
        ({"loss": "best"}, r"kind must be one of .*, got 'best'"),
        ({"loss": ISNetLoss()}, r"reduction 'none', got 'mean'"),
    ],
)
def test_exception(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RightReasons(CAM("trunk", "head"), **arguments)


def test_masks_that_do_not_fit() -> None:
    term, batch = RightReasons(CAM("trunk", "head")), plain_batch()
    trace = trace_of(term, batch)
    with pytest.raises(ValueError, match=r"expected an evidence mask B 1\|3 \(M\) 8 8 4, got \(3, 2, 8, 8, 4\)"):
        term(trace, {**batch, "evidence_mask": batch["evidence_mask"][:, :2]})
    del batch["evidence_mask"]
    with pytest.raises(ValueError, match=r"needs 'evidence_mask', got a batch with .*EvidenceMaskd makes it"):
        term(trace, batch)
    with pytest.raises(ValueError, match="control must be one of"):
        InputGradientPenalty(control="wrong")
    assert InputGradientPenalty().layers == (INPUT,)
