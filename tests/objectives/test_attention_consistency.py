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

from statistics import correlation
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_rrr.attribution import CAM, ClassMap, GuidedBackprop, InputTimesGradient, Trace, record
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.objectives import Alternation, AttentionConsistency, Classification, Objective

B, K, SIZE = 3, 2, (8, 8, 6)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv3d(2, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), nn.LeakyReLU(0.2)]
        self.trunk = nn.Sequential(*layers, nn.Conv3d(4, 4, 3, padding=1), nn.Softplus())
        self.head = nn.Linear(4, K)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.trunk(image).flatten(2).mean(2))


def batch_of(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    brain = torch.zeros(B, 1, *SIZE, dtype=torch.bool)
    brain[:, :, 1:7, 1:7, 1:5] = True
    image = torch.randn(B, 2, *SIZE, dtype=dtype) * brain
    return {"image": image, "brain": brain, "class_label": torch.tensor([[1.0, 0], [0, 1], [1, 1]]), "iteration": 4}


def trace_of(term: Any, batch: dict[str, Any], network: nn.Module | None = None) -> Trace:
    kwargs = {"present": batch["present"]} if "present" in batch else {}
    network = network or Classifier().to(batch["image"].dtype)
    return record(network, batch["image"], term.layers, **kwargs)


def term_of(**arguments: Any) -> AttentionConsistency:
    return AttentionConsistency(**{"attribute": CAM("trunk", "head"), "second": InputTimesGradient(), **arguments})


def test_follows_the_equations() -> None:
    term, batch = term_of(fill="zero", second=InputTimesGradient(per_modality=True)), batch_of()
    trace = trace_of(term, batch)
    network = trace.network
    costs = []
    for b in range(B):
        one, inside = batch["image"][b : b + 1], batch["brain"][b, 0]
        logits = network(one)[0]
        c = int(term.predicted(trace, batch)[b])
        assert logits[c] > 0 or (logits <= 0).all()
        evidence = InputTimesGradient(per_modality=True)(record(network, one, []), torch.tensor([c]))[0, 0].abs().sum(0)
        values = evidence[inside]
        keep = torch.sigmoid(8.0 * ((evidence - values.mean()) / values.std(unbiased=False) - 0.5))
        maps = [(network.head.weight[c][:, None, None, None] * network.trunk(x)[0]).sum(0) for x in (one, one * keep)]
        squashed = [((m[inside] - m[inside].mean()) / m[inside].std(unbiased=False)).sigmoid().tolist() for m in maps]
        costs.append(1 - correlation(*squashed))
    assert float(term(trace, batch).detach()) == pytest.approx(sum(costs) / B, rel=1e-4)


def test_keeping_everything_costs_nothing() -> None:
    class Flat:
        layers = ()

        def __call__(self, trace: Trace, class_idx: Tensor) -> Tensor:
            return torch.ones(len(trace.image), 1, *trace.image.shape[2:])

    batch = batch_of()
    # a map without variance is standardized to 0, below the threshold: a tiny steepness keeps half of everything
    term = term_of(second=Flat(), steepness=1e-6, fill="zero")
    trace = trace_of(term, batch)
    kept = term.masked(trace, batch, term.predicted(trace, batch))
    torch.testing.assert_close(kept, 0.5 * trace.image, atol=1e-5, rtol=0)
    assert term(trace, batch).isfinite()


def test_labels_are_not_used() -> None:
    term, batch = term_of(), batch_of()
    trace = trace_of(term, batch)
    value = term(trace, batch)
    torch.testing.assert_close(term(trace, {**batch, "class_label": batch["class_label"].flip(0)}), value)
    without = {key: value for key, value in batch.items() if key != "class_label"}
    torch.testing.assert_close(term(trace, without), value)


@pytest.mark.parametrize(
    "second", [InputTimesGradient(per_modality=True), InputTimesGradient("none"), GuidedBackprop()]
)
def test_weight_gradient_by_finite_differences(second: Any) -> None:
    network, batch = Classifier().double(), batch_of(torch.float64)
    term = term_of(second=second)
    for detach in (False, True):
        exact = term_of(second=second, detach_second=detach)

        def value(term: AttentionConsistency = exact) -> Tensor:
            return term(trace_of(term, batch, network), batch)

        parameter = network.trunk[0].weight
        gradient = torch.autograd.grad(value(), parameter)[0]
        index = int(gradient.abs().argmax())
        flat, step = parameter.data.view(-1), 1e-6
        flat[index] += step
        above = value().detach()
        flat[index] -= 2 * step
        difference = (above - value().detach()) / (2 * step)
        flat[index] += step
        close = torch.isclose(gradient.flatten()[index], difference, rtol=1e-3)
        assert bool(close) != detach, "the second explanation carries gradient unless it is detached"
    assert term(trace_of(term, batch, network), batch).isfinite()


@pytest.mark.parametrize("control", ["none", "shuffled", "random"])
def test_controls_and_batches(control: str) -> None:
    term, batch = term_of(control=control), batch_of()
    trace = trace_of(term, batch)
    value = term(trace, batch)
    assert 0 <= value <= 2
    assert torch.equal(value, term(trace, batch))
    if control != "none":
        assert not torch.equal(value, term_of()(trace, batch))
    if control == "shuffled":
        one = {key: v[:1] if isinstance(v, Tensor) else v for key, v in batch.items()}
        alone = trace_of(term, one)
        with pytest.raises(ValueError, match="'shuffled' needs a batch of at least 2 samples, got 1"):
            term(alone, one)


def test_random_evidence_keeps_the_histogram() -> None:
    evidence = torch.rand(2, 1, 8, 8, 8)
    found = term_of(control="random")._controlled(evidence, {"iteration": 1})
    torch.testing.assert_close(found.flatten(2).sort(2).values, evidence.flatten(2).sort(2).values)
    assert not torch.equal(found, evidence)
    step = found.diff(dim=2).abs().mean()
    assert step < 0.7 * evidence.diff(dim=2).abs().mean(), "it is smooth"


def test_sample_without_brain_is_left_out() -> None:
    term, batch, network = term_of(), batch_of(), Classifier()
    batch["brain"][1] = False
    kept = {key: v[[0, 2]] if isinstance(v, Tensor) else v for key, v in batch.items()}
    whole = term(trace_of(term, batch, network), batch)
    assert whole.isfinite()
    # one class is predicted at most, so that the draw does not depend on the place in the batch
    network.head.bias.data[:] = torch.tensor([9.0, -9.0])
    torch.testing.assert_close(
        term(trace_of(term, batch, network), batch), term(trace_of(term, kept, network), kept), rtol=1e-4, atol=1e-5
    )


def test_nothing_of_the_network_moves() -> None:
    network, batch = MultimodalCAMNet(["a", "b"], K, channels=(4,), norm="instance"), batch_of()
    batch["present"] = torch.tensor([[True, True], [True, False], [False, True]])
    batch["image"] = batch["image"] * batch["present"][:, :, None, None, None]
    term = AttentionConsistency(ClassMap(), InputTimesGradient(per_modality=True))
    trace = trace_of(term, batch, network)
    before = {name: value.clone() for name, value in network.named_buffers()}
    random = torch.random.get_rng_state()
    value = term(trace, batch)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training
    value.backward()
    assert network.head.weight.grad.abs().sum() > 0


def test_schedules() -> None:
    terms = {"classification": Classification(), "consistency": term_of()}
    batch = {**batch_of(), "class_label": torch.tensor([0, 1, 1])}
    network = Classifier()
    trace = trace_of(terms["consistency"], batch, network)
    single = {name: term(trace, batch) for name, term in terms.items()}
    combining, _ = Objective(terms, {"consistency": 0.2})(trace, batch)
    torch.testing.assert_close(combining, single["classification"] + 0.2 * single["consistency"])
    finetune, values = Objective(terms, {"classification": 0.0})(trace, batch)
    torch.testing.assert_close(finetune, single["consistency"])
    assert set(values) == {"consistency"}
    turns = {
        "classification": Alternation("supervised", 3, 5, alpha=2.0),
        "consistency": Alternation("unsupervised", 3, 5, alpha=2.0),
    }
    objective = Objective(terms, turns)
    weights = [objective.weights_at(step / 3999) for step in range(4000)]
    assert all(sum(w.values()) == 1 for w in weights)
    assert sum(w["classification"] for w in weights) / 4000 == pytest.approx(6 / 11, abs=0.03)


def test_bf16_trunk_is_finite() -> None:
    network, batch = Classifier(), batch_of()
    term = term_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = trace_of(term, batch, network)
    value = term(trace, batch)
    value.backward()
    assert value.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fill": "noise"}, r"fill must be one of .*, got 'noise'"),
        ({"control": "inverted"}, r"control must be one of .*, got 'inverted'"),
        ({"blur": -1.0}, r"steepness and blur must be positive, got 8\.0 and -1\.0"),
    ],
)
def test_exception(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        term_of(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"turn": "both", "supervised": 1, "unsupervised": 1}, "turn must be supervised or unsupervised, got 'both'"),
        ({"turn": "supervised", "supervised": -1, "unsupervised": 1}, "must be finite and at least 0, got"),
        ({"turn": "supervised", "supervised": 0, "unsupervised": 0}, "expected supervised or unsupervised samples"),
    ],
)
def test_alternation_exception(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Alternation(**arguments)
