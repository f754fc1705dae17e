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
from collections.abc import Callable
from typing import Any

import pytest

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.tensor_file import manifest_path

SHORT = {"channels": [4], "epochs": 3, "slabs_per_case": 2, "batch_size": 2, "val_interval": 3}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture
def trainings(cohort: Any, resumable: Callable[..., Any]) -> Any:
    """Return trainings of the bundle in this process."""
    data = {"dataset_dir": str(cohort.blind), "tags_file": str(cohort.tags)}
    return resumable("brats_mri_equivariant_cam", **data, **SHORT)


def test_stopped_and_resumed_training_is_the_uninterrupted_one(trainings: Any) -> None:
    trainings.train("whole")
    trainings.interrupt("run")
    record = trainings.home / "run" / "run.json"
    assert json.loads(record.read_text())["status"] == "interrupted"
    assert not (trainings.home / "run" / "models" / "model.pt").exists()
    refused = trainings.workflow("run")
    with pytest.raises(RuntimeError) as caught:
        refused.run()
    assert isinstance(caught.value.__cause__, CheckpointError)
    assert caught.value.__cause__.code == "run-unfinished"
    refused.finalize()
    trainings.train("run", resume=True, num_workers=2)
    assert json.loads(record.read_text())["status"] == "completed"
    trainings.check_equal("run", "whole")


def test_inference_wants_the_manifest_unless_told_otherwise(cohort: Any, trainings: Any, resumable: Any) -> None:
    trainings.train("run")
    home, weights = trainings.home, trainings.home / "run" / "models" / "model.pt"
    manifest_path(weights).unlink()
    options = {"dataset_dir": str(cohort.blind), "channels": [4], "checkpoint": str(weights)}
    inference = resumable("brats_mri_equivariant_cam", **options)
    with pytest.raises(RuntimeError, match="evaluator"):
        inference.workflow("refused", "infer").run()
    assert not list(home.glob("refused/cases/*"))
    inference.workflow("out", "infer", require_manifest=False).run()
    assert len(list(home.glob("out/cases/*"))) == 6
