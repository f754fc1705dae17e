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

"""What kernels, bank and terms of the method cost over one network on its default backbone, in CPU seconds."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from annotator_arms import ConsensusNet, PlainHeads
from annotator_terms import tendency_objective
from monai.networks.nets import SegResNet
from torch import nn

from monai_rrr.attribution import record
from monai_rrr.engines import PrepareAnnotations
from monai_rrr.handlers import PrototypeUpdate
from monai_rrr.networks import AnnotatorTendencyNet
from monai_rrr.objectives import AnnotatorSegmentation, ConsensusSegmentation, Objective

__all__ = ["write_cost"]

NAMES = tuple(f"a{i}" for i in range(1, 7))
FEATURES = 32


def backbone() -> nn.Module:
    """The default backbone of the network."""
    return SegResNet(init_filters=16, in_channels=4, out_channels=FEATURES)


def volume(size: int) -> dict[str, torch.Tensor]:
    """A ball in a ball, drawn with other radii by six annotators."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(size)) - size / 2] * 3, indexing="ij"))
    distance, radius = grid.square().sum(0).sqrt(), size / 3
    drawn = [
        torch.where(distance < 0.5 * radius + o, 3, torch.where(distance < radius + o, 2, 0)) for o in range(-2, 4)
    ]
    return {"image": torch.rand(1, 4, size, size, size), "annotations": torch.stack(drawn)[None]}


def step_of(network: nn.Module, objective: Objective, size: int) -> Callable[[], None]:
    """One step of training, in the middle of it: prototypes are there and move."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    prepare, bank = PrepareAnnotations(), None
    if isinstance(network, AnnotatorTendencyNet):
        bank = PrototypeUpdate(network, [], prepare)
        for buffers in (network.shared_bank, network.tendency_bank):
            buffers.prototype.copy_(nn.functional.normalize(torch.randn(buffers.prototype.shape), dim=-1))
    elif "segmentation" not in objective.terms:  # needs the votes alone
        prepare = lambda batch, device: {"consensus": votes, **batch}  # type: ignore[assignment]  # noqa: E731
    votes = PrepareAnnotations()(volume(size), "cpu")["consensus"]

    def step() -> None:
        batch: Any = prepare(volume(size), "cpu")
        trace = record(network, batch["image"], objective.layers, annotated=batch.get("annotated"))
        optimizer.zero_grad()
        objective(trace, batch, 0.45)[0].backward()
        optimizer.step()
        if bank is not None:
            state: dict[str, Any] = {"output": batch, "iteration": 46, "max_epochs": 1, "epoch_length": 100}
            bank(SimpleNamespace(state=SimpleNamespace(**state)))  # type: ignore[arg-type]

    return step


def write_cost(result: Path, size: int, steps: int) -> None:
    """Measure and write; rounds of one step each, so that all networks meet the same load of the machine."""
    torch.set_num_threads(1)
    vote = Objective({"consensus": ConsensusSegmentation()})
    heads = Objective({"segmentation": AnnotatorSegmentation(), "consensus": ConsensusSegmentation()})
    ours = tendency_objective((), False)
    networks: dict[str, tuple[nn.Module, Objective]] = {
        "one network on the votes": (ConsensusNet(backbone(), FEATURES, len(NAMES)), vote),
        "plain heads": (PlainHeads(backbone(), FEATURES, len(NAMES)), heads),
        "ours, stride 1": (AnnotatorTendencyNet(NAMES), ours),
        "ours, stride 2": (AnnotatorTendencyNet(NAMES, stride=2), ours),
    }
    runs = {name: step_of(*parts, size) for name, parts in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(steps + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if index:
                seconds[name].append(time.process_time() - begin)
    rows = {}
    first = next(iter(networks))
    base = sum(p.numel() for p in networks[first][0].parameters()), statistics.median(seconds[first])
    for name, (network, _) in networks.items():
        count, median = sum(p.numel() for p in network.parameters()), statistics.median(seconds[name])
        rows[name] = {
            "parameters": count,
            "parameters_over_one": round(count / base[0] - 1, 4),
            "cpu_seconds_per_step": round(median, 3),
            "time_over_one": round(median / base[1] - 1, 3),
            "time_of_inference_over_one": None,
        }
    image = volume(size)["image"]
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad():
        for index in range(steps + 1):
            for name, (network, _) in networks.items():
                begin = time.process_time()
                network.eval()(image)
                if index:
                    times[name].append(time.process_time() - begin)
    for name in rows:
        rows[name]["time_of_inference_over_one"] = round(
            statistics.median(times[name]) / statistics.median(times[first]) - 1, 3
        )
    record_ = {"size": size, "steps": steps, "annotators": len(NAMES), "device": "cpu, one thread", "rows": rows}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(record_, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))
