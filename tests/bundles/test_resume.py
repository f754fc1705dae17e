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


"""The bundle's training stopped and resumed, and its weights with and without their manifest."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.tensor_file import manifest_path

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "brats_mri_equivariant_cam"
SMALL = {"spacing": 6.0, "roi_size": [32, 32, 8], "channels": [4]}
SHORT = {"epochs": 3, "slabs_per_case": 2, "batch_size": 2, "val_interval": 3}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture
def workflow(cohort: Any, tmp_path: Path) -> Callable[..., ConfigWorkflow]:
    """Return a function that prepares a workflow of the bundle in this process."""

    def make(folder: str, kind: str = "train", **options: Any) -> ConfigWorkflow:
        config = "train" if kind == "train" else "inference"
        places = {"dataset_dir": str(cohort.blind), "cache_dir": str(tmp_path / "cache")}
        if kind == "train":
            places |= {**SHORT, "tags_file": str(cohort.tags), "ckpt_dir": str(tmp_path / folder / "models")}
        made = ConfigWorkflow(
            config_file=str(BUNDLE / "configs" / f"{config}.yaml"),
            workflow_type=kind,
            logging_file=False,
            bundle_root=str(BUNDLE),
            output_dir=str(tmp_path / folder),
            device="cpu",
            **{**SMALL, **places, **options},
        )
        made.initialize()
        return made

    return make


def test_stopped_and_resumed_training_is_the_uninterrupted_one(workflow: Any, tmp_path: Path) -> None:
    whole = workflow("whole")
    whole.run()
    whole.finalize()
    first = workflow("run")
    trainer = first.parser.get_parsed_content("train#trainer")
    middle = trainer.state.epoch_length + trainer.state.epoch_length // 2
    trainer.add_event_handler(Events.ITERATION_STARTED(once=middle), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        first.run()
    first.finalize()
    record = tmp_path / "run" / "run.json"
    assert json.loads(record.read_text())["status"] == "interrupted"
    assert not (tmp_path / "run" / "models" / "model.pt").exists()
    refused = workflow("run")
    with pytest.raises(RuntimeError) as caught:
        refused.run()
    assert isinstance(caught.value.__cause__, CheckpointError)
    assert caught.value.__cause__.code == "run-unfinished"
    refused.finalize()
    second = workflow("run", resume=True, num_workers=2)
    second.run()
    second.finalize()
    assert json.loads(record.read_text())["status"] == "completed"
    for name in ("models/model.pt", "training.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_inference_wants_the_manifest_unless_told_otherwise(workflow: Any, tmp_path: Path) -> None:
    training = workflow("run")
    training.run()
    training.finalize()
    weights = tmp_path / "run" / "models" / "model.pt"
    manifest_path(weights).unlink()
    with pytest.raises(RuntimeError, match="evaluator"):
        workflow("refused", "infer", checkpoint=str(weights)).run()
    assert not list(tmp_path.glob("refused/cases/*"))
    workflow("out", "infer", checkpoint=str(weights), require_manifest=False).run()
    assert len(list(tmp_path.glob("out/cases/*"))) == 6
