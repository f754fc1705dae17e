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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_rrr.attribution import Trace, record
from monai_rrr.objectives.base import Objective
from monai_rrr.objectives.schedule import Ramp


@dataclass
class Count:
    """Term that draws a random number, reruns the network, and counts its calls."""

    layers: tuple[str, ...] = ()
    factor: float = 1.0
    calls: list[int] = field(default_factory=list)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        self.calls.append(1)
        torch.rand(1)
        trace.rerun(trace.image, update_statistics=True)
        return self.factor * trace.logits.square().mean() + batch.get("offset", 0.0)


@dataclass(frozen=True)
class Returns:
    value: Any
    layers: tuple[str, ...] = ()

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Any:
        return self.value


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))


@pytest.fixture
def trace() -> Trace:
    return record(network(), torch.rand(2, 1, 5, 5), ["0"])


def test_weighted_total_and_unweighted_values(trace: Trace) -> None:
    objective = Objective({"a": Count(), "b": Count(factor=3.0)}, {"b": 0.5})
    total, values = objective(trace, {"offset": 2.0})
    mean = trace.logits.square().mean().item()
    assert list(values) == ["a", "b"]
    assert values["a"].item() == pytest.approx(mean + 2)
    assert values["b"].item() == pytest.approx(3 * mean + 2)
    assert total.item() == pytest.approx(mean + 2 + 0.5 * (3 * mean + 2))
    assert total.requires_grad
    assert not any(value.requires_grad for value in values.values())


def test_layers_are_a_union_in_stable_order() -> None:
    terms = {"a": Count(("x", "y")), "b": Count(("y", "z")), "c": Count(("w", "x")), "off": Count(("never",))}
    assert Objective(terms, {"off": 0.0, "b": Ramp(1.0)}).layers == ("x", "y", "z", "w")


@pytest.mark.parametrize("zero", [0, 0.0, Ramp(1.0, start=0.5, stop=1.0)])
def test_weight_zero_is_an_absent_term(zero: Any) -> None:
    off = Count()

    def step(objective: Objective) -> list[Tensor]:
        torch.manual_seed(3)
        trace = record(network(), torch.rand(2, 1, 5, 5), ["0"])
        total, values = objective(trace, {}, progress=0.25)
        total.backward()
        assert list(values) == ["a"]
        gradients = [parameter.grad for parameter in trace.network.parameters()]
        return [total, values["a"], torch.rand(1), *gradients, *trace.network.buffers()]

    with_zero = step(Objective({"a": Count(), "off": off}, {"off": zero}))
    absent = step(Objective({"a": Count()}))
    assert off.calls == []
    assert all(torch.equal(one, other) for one, other in zip(with_zero, absent, strict=True))


def test_schedules_read_the_progress(trace: Trace) -> None:
    objective = Objective({"a": Count(), "b": Count()}, {"a": 0.25, "b": Ramp(2.0, start=0.25, stop=0.75)})
    assert objective.weights_at(0.0) == {"a": 0.25, "b": 0.0}
    assert objective.weights_at(0.5) == {"a": 0.25, "b": 1.0}
    assert objective(trace, {}, progress=0.5)[0].item() == pytest.approx(1.25 * trace.logits.square().mean().item())
    assert objective.weights_at(1.0) == {"a": 0.25, "b": 2.0}


@pytest.mark.parametrize(
    ("terms", "weights", "error", "message"),
    [
        ({}, {}, ValueError, "needs at least one term, got none"),
        ({"a": Count()}, {"A": 1.0}, ValueError, r"unknown terms \['A'\]: expected some of \['a'\]"),
        ({"a": Count()}, {"a": -1.0}, ValueError, "weight of 'a' must be finite and at least 0, got -1.0"),
        ({"a": Count()}, {"a": float("nan")}, ValueError, "weight of 'a' must be finite .*got nan"),
        ({"a": Count()}, {"a": "1"}, TypeError, "weight of 'a' must be a number or a callable, got str"),
        ({"a": Count()}, {"a": True}, TypeError, "weight of 'a' must be a number or a callable, got bool"),
    ],
)
def test_wrong_arguments(terms: Any, weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Objective(terms, weights)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(1), r"term 'odd' must return a scalar tensor, got shape \(1,\)"),
        (torch.ones(2, 3), r"term 'odd' must return a scalar tensor, got shape \(2, 3\)"),
        (1.0, "term 'odd' must return a scalar tensor, got float"),
    ],
)
def test_value_that_is_no_scalar(trace: Trace, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective({"odd": Returns(value)})(trace, {})


@pytest.mark.parametrize("progress", [-0.1, 1.5, float("nan")])
def test_progress_out_of_range(trace: Trace, progress: float) -> None:
    with pytest.raises(ValueError, match=rf"progress must be in \[0, 1\], got {progress}"):
        Objective({"a": Count()})(trace, {}, progress=progress)


def test_nothing_to_minimize(trace: Trace) -> None:
    with pytest.raises(ValueError, match=r"at progress 1.0 no term has a weight above 0: \{'a': 0.0\}"):
        Objective({"a": Count()}, {"a": 0.0})(trace, {})


def test_schedule_that_returns_nonsense(trace: Trace) -> None:
    with pytest.raises(ValueError, match=r"weight of 'a' must be finite and at least 0, got -0\.5"):
        Objective({"a": Count()}, {"a": lambda progress: -progress})(trace, {}, progress=0.5)
