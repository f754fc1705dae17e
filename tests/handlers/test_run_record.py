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

import json

import pytest
import torch
from ignite.engine import Engine

from monai_rrr.handlers import RunRecord
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.objectives import CrossModalEquivariance, Objective, Ramp, TagClassification

TAGS = {
    "Patient_Secret_1": {"WT": (4, 9), "TC": (5, 6), "ET": None},
    "Patient_Secret_2": {"WT": (1, 2), "TC": None, "ET": None},
}


def run(path, fail=False):
    network = MultimodalCAMNet(channels=(4,))
    objective = Objective(
        {"classification": TagClassification(), "cross_modal": CrossModalEquivariance()},
        {"cross_modal": Ramp(0.5, stop=0.4)},
    )
    network.operating_point.copy_(torch.tensor([[0.25, 12.0], [0.5, 0.0], [0.75, 3.0]]))

    def step(engine, _):
        assert json.loads(path.read_text())["status"] == "running"
        if fail:
            raise KeyboardInterrupt
        return 0

    engine = Engine(step)
    RunRecord(path, objective, TAGS, network, {"seed": 3, "spacing": 3.0}).attach(engine)
    engine.run([0, 1], max_epochs=2)
    return json.loads(path.read_text())


def test_record_of_a_run(tmp_path):
    record = run(tmp_path / "eval" / "run.json")
    assert record["status"] == "completed"
    assert record["seconds"] >= 0
    assert record["weights"] == {
        "0.0": {"classification": 1.0, "cross_modal": 0.0},
        "0.5": {"classification": 1.0, "cross_modal": 0.5},
        "1.0": {"classification": 1.0, "cross_modal": 0.5},
    }
    assert record["tag_budget"] == {"cases": 2, "integers": 6, "integers_per_case": 3.0}
    assert record["training_cases"] == 2
    assert (record["epochs"], record["iterations_per_epoch"]) == (2, 2)
    assert record["settings"] == {"seed": 3, "spacing": 3.0}
    assert record["operating_point"] == [[0.25, 12.0], [0.5, 0.0], [0.75, 3.0]]
    assert record["reliability"] == [[0.25] * 3] * 4
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"]


def test_no_path_and_no_case_id(tmp_path):
    run(tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text()
    assert "Secret" not in text
    assert str(tmp_path) not in text
    assert "/home" not in text
    assert "/root" not in text


def test_seconds_of_all_parts_and_how_it_ended(tmp_path):
    engine = Engine(lambda engine, _: engine.terminate(skip_completed=True))
    objective = Objective({"classification": TagClassification()})
    record = RunRecord(tmp_path / "run.json", objective, TAGS, MultimodalCAMNet(channels=(4,)))
    record.load_state_dict({"seconds": 100.0})
    record.attach(engine)
    engine.state.skipped = 2
    engine.run([0, 1], max_epochs=2)
    written = json.loads((tmp_path / "run.json").read_text())
    assert (written["status"], written["skipped_steps"]) == ("interrupted", 2)
    assert 100.0 <= written["seconds"] <= record.state_dict()["seconds"] + 0.1


def test_a_run_that_ends_early_says_running(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.json", fail=True)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
