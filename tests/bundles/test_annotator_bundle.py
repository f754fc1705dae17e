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


"""The bundle of annotator tendency, as its users run it, with simulated annotators of a synthetic cohort."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_rrr.handlers import TrustAnnotator, majority_consensus
from monai_rrr.transforms import BandedConsensus, StapleConsensus
from monai_rrr.utils.files import sha256

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

NAME = "brats_mri_annotator_tendency"
BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / NAME
ANNOTATORS = [f"a{number}" for number in range(1, 7)]
TERMS = {"segmentation", "consensus", "mixture", "tie", "contrast", "distance", "diversity", "parsimony"}
NETWORK = {"channels": [4, 8], "features": 8, "width": 16, "slots": 2, "shared_slots": 2, "queue": 1024}
SHORT = {"epochs": 5, "volumes_per_case": 2, "batch_size": 2, "voxels": 512, "val_interval": 5}


@pytest.fixture(scope="module")
def trained(team: Path, make_runner: Callable[..., Any]) -> Any:
    """Return the bundle, trained for some steps in all stages."""
    runner = make_runner(NAME)
    runner.run("train.yaml", dataset_dir=team, **{**NETWORK, **SHORT})
    return runner


def test_training_goes_through_all_stages(trained: Any) -> None:
    record = trained.record()
    assert (record["status"], record["training_cases"], record["skipped_steps"]) == ("completed", 4, 0)
    assert record["settings"]["annotators"] == ANNOTATORS
    assert record["weights"]["0.0"]["mixture"] == 0 < record["weights"]["1.0"]["mixture"]
    assert trained.terms() == {"total", "signed_distance", *TERMS}
    weights = torch.load(trained.root / "models" / "model.pt", weights_only=True)
    gamma = torch.stack([value for name, value in weights.items() if name.endswith("gamma")])
    assert len(gamma) == 6
    assert gamma.abs().min() > 0, "the kernels were trained"
    assert weights["shared_bank.frozen"].any()
    source = weights["shared_bank.source"][weights["shared_bank.frozen"]]
    assert set(source[..., 0].flatten().tolist()) <= {-1, 0, 1, 2, 3}, "prototypes are patches of training cases"
    assert source[..., 0].max() >= 0


def test_evaluation_scores_annotators_and_consensus(trained: Any, team: Path, tmp_path: Path) -> None:
    trained.run("train.yaml", "evaluate.yaml", dataset_dir=team, output_dir=tmp_path, flips=[0], **NETWORK)
    rows = trained.rows(tmp_path / "metrics.csv")
    assert len({row["case_id"] for row in rows}) == 2
    assert {row["annotator"] for row in rows} == {*ANNOTATORS, "consensus", "all"}
    assert len(rows) == 2 * 8 * 3
    for row in rows:
        scored = {key for key in row if row[key]} - {"case_id", "annotator", "region", "lesion_recall"}
        masks = {"dice", "hd95", "nsd", "lesions", "brier", "ece", "truth_ml", "pred_ml"}
        alone = {"consensus": masks, "all": {"ged", "q_dice"}}
        assert scored == alone.get(row["annotator"], masks | {"gain"})
        assert all(0 <= float(row[key] or 0) <= 1 for key in ("nsd", "lesion_recall", "brier", "ece", "q_dice"))
        assert 0 <= float(row["dice"] or 0) <= 1
        assert -1 <= float(row["gain"] or 0) <= 1
        assert 0 <= float(row["ged"] or 0) <= 2
    record = json.loads((tmp_path / "metrics_provenance.json").read_text())
    assert record["weights_sha256"] == sha256(trained.root / "models" / "model.pt")
    assert len(list(tmp_path.glob("cases/*/*_seg_a3.nii.gz"))) == 2


def test_weights_of_other_annotators_are_refused(trained: Any, cohort: Any, tmp_path: Path) -> None:
    others = {"annotators": [f"b{number}" for number in range(1, 7)], **NETWORK}
    with pytest.raises(AssertionError, match=r"checkpoint-annotators.*expected weights of the annotators b1, b2"):
        trained.run("inference.yaml", dataset_dir=cohort.blind, output_dir=tmp_path, **others)
    assert not list(tmp_path.glob("cases/*"))


def test_inference_writes_a_mask_for_everyone(trained: Any, cohort: Any, tmp_path: Path) -> None:
    trained.run("inference.yaml", dataset_dir=cohort.blind, output_dir=tmp_path, **NETWORK)
    folders = sorted((tmp_path / "cases").iterdir())
    assert len(folders) == 6
    for folder in folders:
        case = folder.name
        written = {f"{case}_seg_{name}.nii.gz" for name in ("consensus", *ANNOTATORS)}
        assert {path.name for path in folder.iterdir()} == written | {f"{case}_provenance.json"}
        record = json.loads((folder / f"{case}_provenance.json").read_text())
        assert {name: sha256(folder / name) for name in written} == record["outputs"]
        assert record["weights_sha256"] == sha256(trained.root / "models" / "model.pt")
        assert record["settings"]["annotators"] == ANNOTATORS
        like = nib.load(cohort.blind / case / f"{case}_t2.nii.gz")
        for name in written:
            image = nib.load(folder / name)
            assert image.shape == like.shape
            np.testing.assert_allclose(image.affine, like.affine, atol=1e-3)
            assert image.get_data_dtype() == np.uint8
            assert set(np.unique(image.get_fdata())) <= {0, 1, 2, 4}


@pytest.mark.parametrize("estimate", ["banded", "staple"])
def test_sparse_annotators_and_expectation_maximization(
    estimate: str, team: Path, make_runner: Callable[..., Any], tmp_path: Path
) -> None:
    """Not everybody draws every case; the consensus is estimated again."""
    content = json.loads((team / "datalist.json").read_text())
    for index, entry in enumerate(content["training"]):
        entry["annotations"][f"a{index + 1}"] = None
    for entry in [entry for section in content.values() for entry in section]:
        for group in ("modalities", "annotations"):
            entry[group] = {name: path and str(team / path) for name, path in entry[group].items()}
        if "label" in entry:
            entry["label"] = str(team / entry["label"])
    (tmp_path / "sparse.json").write_text(json.dumps(content))
    runner = make_runner(NAME)
    files = {"dataset_dir": tmp_path, "datalist": tmp_path / "sparse.json"}
    options = {**NETWORK, **SHORT, "epochs": 3, "em_every": 1, "val_interval": 3, "consensus_estimate": estimate}
    runner.train_here("expectation_maximization.yaml", **files, **options)
    weights = torch.load(runner.root / "models" / "model.pt", weights_only=True)
    assert weights["rho"].sum() == pytest.approx(1)
    assert weights["rho"].unique().numel() > 1, "reliabilities were estimated"
    assert runner.record()["settings"]["consensus"] == estimate


def test_consensus_by_any_estimate(team: Path) -> None:
    def estimate(name: str) -> Any:
        files = [str(BUNDLE / "configs" / f"{file}.yaml") for file in ("train", "expectation_maximization")]
        options = {"dataset_dir": str(team), "consensus_estimate": name, "trusted": "a3"}
        parser = ConfigWorkflow(files, workflow_type="train", logging_file=False, **options).parser
        return parser.get_parsed_content("estimates")[parser["consensus_estimate"]]

    assert isinstance(estimate("banded"), BandedConsensus)
    assert isinstance(estimate("staple"), StapleConsensus)
    assert estimate("dawid_skene").edges == []
    assert estimate("trust") == TrustAnnotator(2)
    assert estimate("majority") is majority_consensus


def test_stopped_and_resumed_training_is_the_uninterrupted_one(team: Path, resumable: Callable[..., Any]) -> None:
    trainings = resumable(NAME, dataset_dir=str(team), **NETWORK, **SHORT)
    trainings.train("whole")
    trainings.interrupt("run", epoch=2)
    trainings.train("run", resume=True)
    trainings.check_equal("run", "whole")


def test_two_processes_end_with_one_network(team: Path, make_runner: Callable[..., Any]) -> None:
    runner = make_runner(NAME)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    data = {"dataset_dir": team, "device": "cpu", "dist_backend": "gloo"}
    runner.run("train.yaml", "multi_gpu_train.yaml", launcher=launcher, **data, **{**NETWORK, **SHORT, "epochs": 6})
    record = runner.record()
    assert (record["processes"], record["iterations_per_epoch"]) == (2, 2)
    assert [path.name for path in (runner.root / "models").glob("*.pt")] == ["model.pt"]


def test_truth_never_reaches_training(team: Path, tmp_path: Path) -> None:
    """The section that trains names no label, and one that is put there is not read."""
    shutil.copytree(team / "masks", tmp_path / "masks")
    content = json.loads((team / "datalist.json").read_text())
    assert not any("label" in entry for entry in content["training"])
    for entry in [entry for section in content.values() for entry in section]:
        entry["modalities"] = {name: str((team / path).resolve()) for name, path in entry["modalities"].items()}
        entry.pop("label", None)
    content["training"][0]["label"] = "not/there.nii.gz"
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    files = [str(BUNDLE / "configs" / "train.yaml")]
    parser = ConfigWorkflow(files, workflow_type="train", logging_file=False, dataset_dir=str(tmp_path)).parser
    assert not any("label" in case for case in parser.get_parsed_content("cases"))


def test_network_fits_the_metadata(trained: Any) -> None:
    files = {"net_id": "network_def", "meta_file": "configs/metadata.json", "config_file": "configs/inference.yaml"}
    done = trained.call("verify_net_in_out", **files, n=2)
    assert "verified with no error" in done.stdout + done.stderr
