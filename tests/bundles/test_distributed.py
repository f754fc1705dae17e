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


"""Two processes train one network."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
WITNESS = """
+run:
  - "$torch.save({**@network_def.state_dict(), 'rank': torch.tensor(dist.get_rank())}, \\
    @output_dir + '/rank' + str(dist.get_rank()) + '.pt')"
"""


def test_two_processes_end_with_one_network(cohort: Any, make_runner: Callable[[], Any]) -> None:
    runner = make_runner()
    (runner.root / "configs" / "witness.yaml").write_text(WITNESS)
    overlays = ("multi_gpu_train.yaml", "witness.yaml")
    data = {"dataset_dir": cohort.blind, "tags_file": cohort.tags, "device": "cpu", "dist_backend": "gloo"}
    runner.train(*overlays, launcher=LAUNCHER, epochs=6, **data)
    output = runner.root / "eval"
    first, second = (torch.load(output / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (first.pop("rank"), second.pop("rank")) == (0, 1)
    checkpoint = torch.load(runner.root / "models" / "model.pt", weights_only=True)
    assert list(first) == list(checkpoint)
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differs between the processes"
        assert torch.equal(value, checkpoint[name]), f"{name} differs from the checkpoint"
    assert not torch.equal(first["reliability.tag_loss"], torch.full((4, 3), 0.6931))
    assert not torch.equal(first["operating_point"], torch.tensor([[0.5, 0.0]]).repeat(3, 1))
    assert [path.name for path in (runner.root / "models").glob("*.pt")] == ["model.pt"]
    record = json.loads((output / "run.json").read_text())
    assert record["processes"] == 2
    assert record["iterations_per_epoch"] == 2
    lines = (output / "training.csv").read_text().splitlines()
    assert lines[0] == "step,term,value"
    assert {line.split(",")[0] for line in lines[1:]} == {"10", "12"}
    assert len(list(output.glob("events.out.tfevents.*"))) == 2
