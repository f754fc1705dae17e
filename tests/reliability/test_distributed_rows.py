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

"""Two processes: gradients of losses on heatmaps are averaged; what would go wrong without a word is refused."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_rrr.engines import explanation_update
from monai_rrr.engines.checks import check_parallel, check_used_parameters
from monai_rrr.errors import ConfigError

WORKER = r'''
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from monai.engines import SupervisedTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from monai_rrr.attribution import GradCAM
from monai_rrr.engines import explanation_update
from monai_rrr.errors import ConfigError
from monai_rrr.losses import HeatmapDistanceLoss
from monai_rrr.objectives import Objective

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)


class Reasons:
    """A loss on Grad-CAM: its gradient is a second derivative."""

    layers = ("1",)

    def __call__(self, trace, batch):
        heatmap = GradCAM("1", relu=False)(trace, torch.zeros(2, dtype=torch.long))
        return HeatmapDistanceLoss("mean_square")(heatmap, batch["target"]) + trace.logits.square().mean()


class Partly(nn.Sequential):
    """Has a layer that no forward pass uses."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.norm_cross_attn = nn.Linear(3, 3)

    def forward(self, image):
        for name, layer in self.named_children():
            image = image if name == "norm_cross_attn" else layer(image)
        return image


def make(kind=nn.Sequential):
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 3, 3), nn.Softplus(), nn.Conv3d(3, 3, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()]
    return kind(*layers, nn.Linear(3, 2))


def batch(of):
    torch.manual_seed(100 + of)
    return {"image": torch.randn(2, 1, 6, 6, 6), "target": torch.randn(2, 1, 4, 4, 4), "case_id": ["a", "b"]}


def step(network, of):
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch(of)],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.0),
        loss_function=Objective({"reasons": Reasons()}),
        prepare_batch=lambda data, *_, **__: data,
        iteration_update=explanation_update,
        decollate=False,
    )
    trainer.run()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def refused(network):
    try:
        step(network, rank)
    except ConfigError as error:
        return error.code, error.message
    return None, None


alone = [step(make(), of) for of in (0, 1)]
together = step(DistributedDataParallel(make()), rank)
error = max(float((g - (a + b) / 2).abs().max()) for g, a, b in zip(together, *alone, strict=True))
apart = max(float((a - b).abs().max()) for a, b in zip(*alone, strict=True))
differences = []
for gradient in together:
    both = [torch.zeros_like(gradient) for _ in range(2)]
    dist.all_gather(both, gradient)
    differences.append(float((both[0] - both[1]).abs().max()))
record = {"error": error, "apart": apart, "between": max(differences)}
record["static"] = refused(DistributedDataParallel(make(), static_graph=True))
record["found"] = len(step(DistributedDataParallel(make(Partly), find_unused_parameters=True), rank))
record["unused"] = refused(DistributedDataParallel(make(Partly)))
(folder / f"rank{rank}.json").write_text(json.dumps(record))
dist.barrier()
dist.destroy_process_group()
'''


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "worker.py").write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(folder / "worker.py"), str(rank), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    texts = [worker.communicate(timeout=500)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], texts
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_p1_gradients(records: list[dict[str, Any]]) -> None:
    for record in records:
        assert record["apart"] > 1e-3, "the processes see other data"
        assert record["error"] < 1e-6
        assert record["between"] == 0.0


@pytest.mark.slow
def test_p2_static_graph(records: list[dict[str, Any]]) -> None:
    for record in records:
        assert record["static"][0] == "ddp-static-graph"


@pytest.mark.slow
def test_p3_unused_parameters(records: list[dict[str, Any]]) -> None:
    for record in records:
        assert record["unused"][0] == "parameters-unused"
        assert record["unused"][1].endswith("got none for norm_cross_attn.weight, norm_cross_attn.bias")
        assert record["found"] == 6, "with find_unused_parameters the others are trained"


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_p2_static_graph_in_one_process(process_group: Any) -> None:
    network = nn.Linear(2, 2)
    check_parallel(network)
    check_parallel(DistributedDataParallel(network))
    with pytest.raises(ConfigError, match=r"\[ddp-static-graph\].*got static_graph=True Hint: .*unused_param"):
        check_parallel(DistributedDataParallel(network, static_graph=True))


class Step:
    """What the check reads of a trainer."""

    def __init__(self, network: nn.Module, iteration: int) -> None:
        self.network = network
        self.state = type("State", (), {"iteration": iteration})


@pytest.mark.parametrize("iteration", [1, 2])
def test_p3_in_one_process_a_warning(iteration: int, caplog: pytest.LogCaptureFixture) -> None:
    network = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})
    network["frozen"].requires_grad_(False)
    network["used"](torch.ones(1, 2)).sum().backward()
    with caplog.at_level(logging.WARNING):
        check_used_parameters(Step(network, iteration))
    text = "expected a gradient for every trainable parameter, got none for idle.weight, idle.bias"
    assert [record.getMessage() for record in caplog.records] == ([text] if iteration == 1 else [])


def test_p3_names_are_few(process_group: Any) -> None:
    network = DistributedDataParallel(nn.ModuleList(nn.Linear(1, 1) for _ in range(10)))
    with pytest.raises(ConfigError, match=r"\[parameters-unused\].* got none for 0\.weight, 0\.bias, .* and 12 more"):
        check_used_parameters(Step(network, 3))


def test_p2_training_refuses_before_the_first_pass(process_group: Any) -> None:
    network = DistributedDataParallel(nn.Linear(2, 2), static_graph=True)
    objective = type("Objective", (), {"layers": ()})()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(1, 2)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=objective,
        iteration_update=explanation_update,
        decollate=False,
    )
    with pytest.raises(ConfigError, match="ddp-static-graph"):
        trainer.run()
