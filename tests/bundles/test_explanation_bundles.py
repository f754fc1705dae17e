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


"""The bundles of guided attention and attention consistency, as their users run them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.files import sha256

pytestmark = pytest.mark.slow

GUIDED, CONSISTENT = "brats_mri_guided_attention", "brats_mri_attention_consistency"


def test_guided_training_reads_some_masks(guided: Any) -> None:
    assert guided.terms() == {"total", "classification", "attention_mining", "guidance"}
    record = guided.record()
    assert record["status"] == "completed"
    assert record["settings"]["masks"] == 2
    assert record["weights"]["1.0"] == {"classification": 1.0, "attention_mining": 1.0, "guidance": 10.0}
    assert torch.load(guided.root / "models" / "model.pt", weights_only=True)


@pytest.mark.parametrize("name", ["guided", "tuned"])
def test_evaluation_and_inference(name: str, cohort: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    runner = request.getfixturevalue(name)
    digest = sha256(runner.root / "models" / "model.pt")
    runner.run("train.yaml", "evaluate.yaml", dataset_dir=cohort.masked, output_dir=tmp_path / "eval")
    rows = runner.rows(tmp_path / "eval" / "metrics.csv")
    assert len({row["case_id"] for row in rows}) == 2
    assert {row["threshold"] for row in rows if row["method"] == "full"} == {"label_free", "tag_calibrated", "oracle"}
    assert json.loads((tmp_path / "eval" / "metrics_provenance.json").read_text())["weights_sha256"] == digest
    runner.run("inference.yaml", dataset_dir=cohort.blind, output_dir=tmp_path / "out", per_modality=False)
    assert len(list((tmp_path / "out" / "cases").glob("*/*_pred.nii.gz"))) == 6
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cases").glob("*/*_provenance.json")]
    assert [record["weights_sha256"] for record in records] == [digest] * 6


def test_guided_training_runs_without_any_mask(cohort: Any, make_runner: Callable[..., Any]) -> None:
    runner = make_runner(GUIDED)
    runner.train_here("self_guidance.yaml", dataset_dir=cohort.blind, tags_file=cohort.tags)
    assert runner.terms() == {"total", "classification", "attention_mining"}
    assert runner.record()["settings"]["masks"] == 0


@pytest.mark.parametrize("overlay", ["random_masks", "shuffled_masks", "inverted_masks"])
def test_controls_of_guidance(overlay: str, guided: Any, cohort: Any, make_runner: Callable[..., Any]) -> None:
    runner = make_runner(GUIDED)
    runner.train_here(f"{overlay}.yaml", dataset_dir=cohort.masked, tags_file=cohort.tags, mask_share=0.5)
    record = runner.record()
    assert record["settings"]["mask_control"] == overlay.split("_")[0]
    assert record["settings"]["masks"] == 2, "as many masks as the run that it is a control of"
    first, second = (torch.load(r.root / "models" / "model.pt", weights_only=True) for r in (guided, runner))
    assert any(not torch.equal(first[name], second[name]) for name in first), "the masks are others"


def test_consistency_starts_from_the_other_bundles(guided: Any, tuned: Any) -> None:
    runner, weights = tuned, guided.root / "models" / "model.pt"
    assert runner.terms() == {"total", "consistency"}
    record = runner.record()
    assert record["settings"]["fine_tuned"] is True
    assert 1 <= record["settings"]["unlabeled_cases"] <= 3
    before = torch.load(weights, weights_only=True)
    after = torch.load(runner.root / "models" / "model.pt", weights_only=True)
    for name in ("stem.weight", "head.weight"):
        torch.testing.assert_close(after[name], before[name], atol=1e-3, rtol=0)
        assert not torch.equal(after[name], before[name])


def test_consistency_without_any_tag(guided: Any, cohort: Any, make_runner: Callable[..., Any]) -> None:
    runner = make_runner(CONSISTENT)
    weights = guided.root / "models" / "model.pt"
    runner.train_here("finetune.yaml", dataset_dir=cohort.blind, tags_file="", start_from=weights)
    assert runner.record()["settings"]["unlabeled_cases"] == 4
    before = torch.load(weights, weights_only=True)["operating_point"]
    assert torch.equal(torch.load(runner.root / "models" / "model.pt", weights_only=True)["operating_point"], before)


def test_weights_to_start_from_need_their_manifest(
    guided: Any, cohort: Any, make_runner: Callable[..., Any], tmp_path: Path
) -> None:
    runner = make_runner(CONSISTENT)
    shutil.copy(guided.root / "models" / "model.pt", tmp_path / "model.pt")
    data = {"dataset_dir": cohort.blind, "tags_file": cohort.tags, "start_from": tmp_path / "model.pt", "epochs": 1}
    with pytest.raises(RuntimeError) as caught:
        runner.train_here(**data)
    assert isinstance(caught.value.__cause__, CheckpointError)
    assert not (runner.root / "models" / "model.pt").exists()
    runner.train_here(**data, require_manifest=False)
    assert runner.record()["status"] == "completed"


@pytest.fixture(scope="module")
def combined(cohort: Any, make_runner: Callable[..., Any]) -> Any:
    """Return a bundle of which both terms were trained in every step, without an overlay."""
    runner = make_runner(CONSISTENT)
    runner.train_here(dataset_dir=cohort.blind, tags_file=cohort.tags, seed=3)
    assert runner.terms() == {"total", "classification", "consistency"}
    return runner


@pytest.mark.parametrize("overlay", ["alternating", "shuffled_evidence", "random_evidence", "plain_cam"])
def test_schedules_and_controls_of_consistency(
    overlay: str, combined: Any, cohort: Any, make_runner: Callable[..., Any]
) -> None:
    runner = make_runner(CONSISTENT)
    log = {"train::handlers::6::every": 1} if overlay == "alternating" else {}
    runner.train_here(f"{overlay}.yaml", dataset_dir=cohort.blind, tags_file=cohort.tags, seed=3, **log)
    assert runner.record()["status"] == "completed"
    both = {"classification", "consistency"}
    assert runner.terms() - {"total"} == ({"classification"} if overlay == "plain_cam" else both)
    if overlay == "alternating":
        steps = [{row["term"] for row in runner.rows() if row["step"] == str(step)} for step in range(1, 13)]
        assert all(len(terms & both) == 1 for terms in steps), "one term in a step"
    first, second = (torch.load(r.root / "models" / "model.pt", weights_only=True) for r in (combined, runner))
    assert all(value.isfinite().all() for value in second.values())
    assert any(not torch.equal(first[name], second[name]) for name in first), "the overlay changes the training"


@pytest.mark.parametrize("name", [GUIDED, CONSISTENT])
def test_two_processes_end_with_one_network(name: str, cohort: Any, make_runner: Callable[..., Any]) -> None:
    runner = make_runner(name)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    data = {"dataset_dir": cohort.masked, "tags_file": cohort.tags, "device": "cpu", "dist_backend": "gloo"}
    runner.train("multi_gpu_train.yaml", launcher=launcher, slabs_per_case=4, **data)
    assert runner.record()["processes"] == 2
    assert [path.name for path in (runner.root / "models").glob("*.pt")] == ["model.pt"]
