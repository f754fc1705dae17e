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

from monai_rrr.data import load_datalist
from monai_rrr.handlers import TrustAnnotator, majority_consensus
from monai_rrr.report import write_annotator_report
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


def test_temperatures_are_chosen_on_cases_of_their_own(
    team: Path, make_runner: Callable[..., Any], tmp_path: Path
) -> None:
    listed = json.loads((team / "datalist.json").read_text())
    folder = tmp_path / "team"
    shutil.copytree(team, folder)
    listed["calibration"] = [listed["training"].pop()]
    (folder / "datalist.json").write_text(json.dumps(listed))
    runner = make_runner(NAME)
    short = {**SHORT, "epochs": 2, "calibration_section": "calibration"}
    runner.run("train.yaml", dataset_dir=folder, **{**NETWORK, **short})
    assert runner.record()["training_cases"] == 3
    temperatures = torch.load(runner.root / "models" / "model.pt", weights_only=True)["temperatures"]
    assert temperatures.shape == (7,)
    assert bool((temperatures != 1).all())
    assert bool((temperatures >= 0.1).all() and (temperatures <= 10).all())


@pytest.fixture(scope="module")
def strong(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights with which annotators disagree."""
    return trained.strong_weights(tmp_path_factory.mktemp("strong") / "model.pt")


@pytest.fixture(scope="module")
def evaluated(trained: Any, strong: Path, team: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an evaluation."""
    out = tmp_path_factory.mktemp("evaluated")
    trained.run(
        "train.yaml", "evaluate.yaml", dataset_dir=team, output_dir=out, checkpoint=strong, flips=[0], **NETWORK
    )
    return out


def files_of(folder: Path) -> dict[str, Path]:
    """Files of a case by the part of the name that says what they are."""
    return {path.name.removeprefix(f"{folder.name}_"): path for path in folder.iterdir()}


def volume(path: Path) -> Any:
    return np.asarray(nib.load(path).dataobj)


def names_of_a_case() -> set[str]:
    names = [*(f"seg_{name}" for name in ("consensus", "mixture", *ANNOTATORS)), *(f"tendency_{n}" for n in ANNOTATORS)]
    names += ["prob_mean", "who", "who_prob", *(f"disagreement_{kind}" for kind in ("entropy", "js", "region"))]
    return {f"{name}.nii.gz" for name in names} | {"why.json", "why.html", "provenance.json"}


def check_case(folder: Path, images: Path) -> dict[str, Any]:
    """What holds for the files of every case; returns ``why.json``."""
    files = files_of(folder)
    why: dict[str, Any] = json.loads(files["why.json"].read_text())
    pictures = {f"why_{region['region']}.png" for region in why["regions"]}
    assert set(files) == names_of_a_case() | pictures
    record = json.loads(files["provenance.json"].read_text())
    assert {path.name: sha256(path) for name, path in files.items() if name != "provenance.json"} == record["outputs"]
    like = nib.load(images / f"{folder.name}_t2.nii.gz")
    for name in (name for name in files if name.endswith(".nii.gz")):
        image = nib.load(files[name])
        assert image.shape[:3] == like.shape
        np.testing.assert_allclose(image.affine, like.affine, atol=1e-3)
        whole = name.startswith("seg") or name in ("who.nii.gz", "disagreement_region.nii.gz")
        assert image.get_data_dtype() == (np.uint8 if whole else np.float32)
        if name.startswith("seg"):
            assert set(np.unique(image.get_fdata())) <= {0, 1, 2, 4}
    who = volume(files["who_prob.nii.gz"])
    assert who.shape[3] == 1 + len(ANNOTATORS)
    np.testing.assert_allclose(who.sum(-1), 1, atol=1e-4)
    np.testing.assert_array_equal(who.argmax(-1), volume(files["who.nii.gz"]))
    np.testing.assert_allclose(volume(files["prob_mean.nii.gz"]).sum(-1), 1, atol=1e-4)
    assert volume(files["disagreement_region.nii.gz"]).max() == len(why["regions"])
    assert why["annotators"] == ANNOTATORS
    return why


def test_evaluation_scores_annotators_and_consensus(trained: Any, evaluated: Path, strong: Path) -> None:
    rows = trained.rows(evaluated / "metrics.csv")
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
    record = json.loads((evaluated / "metrics_provenance.json").read_text())
    assert record["weights_sha256"] == sha256(strong)


def test_weights_of_other_annotators_are_refused(trained: Any, cohort: Any, tmp_path: Path) -> None:
    others = {"annotators": [f"b{number}" for number in range(1, 7)], **NETWORK}
    with pytest.raises(AssertionError, match=r"checkpoint-annotators.*expected weights of the annotators b1, b2"):
        trained.run("inference.yaml", dataset_dir=cohort.blind, output_dir=tmp_path, **others)
    assert not list(tmp_path.glob("cases/*"))


def test_evaluation_says_who_and_why(evaluated: Path, cohort: Any, team: Path) -> None:
    """Prototypes are places of training cases at which their annotator drew what is said."""
    training = {entry["case_id"]: entry for entry in json.loads((team / "datalist.json").read_text())["training"]}
    order, shown = list(training), []
    for folder in sorted((evaluated / "cases").iterdir()):
        why = check_case(folder, cohort.masked / folder.name)
        assert set(why["who"]) == set(why["rho"]) == set(ANNOTATORS)
        for region in why["regions"]:
            assert sum(region["who"].values()) == pytest.approx(1, abs=1e-3)
            assert region["most_like"] in ANNOTATORS
            shown += region["prototypes"]
    assert shown, "annotators disagree, and prototypes are training patches"
    for source in shown:
        assert source["annotator"] in ANNOTATORS
        assert source["case"] == order[source["case_number"]]
        image = nib.load(team / training[source["case"]]["annotations"][source["annotator"]])
        place = np.linalg.inv(image.affine) @ [*source["mm"], 1]
        inside = (np.round(place[:3]) >= 0) & (np.round(place[:3]) < image.shape)
        assert inside.all(), "millimeters are those of the training case's files"


def test_report_of_the_evaluation(evaluated: Path, team: Path, tmp_path: Path) -> None:
    cases = load_datalist(team / "datalist.json", section="test", with_annotations=True)
    text = write_annotator_report(evaluated, cases, "brats2018", tmp_path).read_text("utf-8")
    for name in ANNOTATORS:
        assert f"<h3>{name}</h3>" in text
    assert text.count("<h3>") == 2 * len(ANNOTATORS) + 2, "cards as drawn and as predicted, and two cases"


def test_inference_writes_who_and_why_for_everyone(trained: Any, strong: Path, cohort: Any, tmp_path: Path) -> None:
    """Without the training list, cases of training are numbers."""
    trained.run("inference.yaml", dataset_dir=cohort.blind, output_dir=tmp_path, checkpoint=strong, **NETWORK)
    folders = sorted((tmp_path / "cases").iterdir())
    assert len(folders) == 6
    shown = []
    for folder in folders:
        why = check_case(folder, cohort.blind / folder.name)
        shown += [source for region in why["regions"] for source in region["prototypes"]]
        record = json.loads(files_of(folder)["provenance.json"].read_text())
        assert record["weights_sha256"] == sha256(strong)
        assert record["settings"]["annotators"] == ANNOTATORS
    assert shown
    assert {source["case"] for source in shown} == {None}
    assert {source["case_number"] for source in shown} <= {0, 1, 2, 3}


def test_inference_with_the_training_list_names_training_cases(
    trained: Any, strong: Path, cohort: Any, team: Path, tmp_path: Path
) -> None:
    [first, *_] = sorted(path for path in cohort.blind.iterdir() if path.is_dir())
    options = {"training_list": team / "datalist.json", "checkpoint": strong, "explained_regions": 1}
    trained.run("inference.yaml", dataset_dir=first, output_dir=tmp_path, **options, **NETWORK)
    [folder] = (tmp_path / "cases").iterdir()
    why = check_case(folder, first)
    training = [entry["case_id"] for entry in json.loads((team / "datalist.json").read_text())["training"]]
    assert len(why["regions"]) <= 1
    for source in [source for region in why["regions"] for source in region["prototypes"]]:
        assert source["case"] == training[source["case_number"]]


def test_controls_train(team: Path, make_runner: Callable[..., Any]) -> None:
    """All controls at once: permuted annotators, random prototypes, a shuffled tie."""
    runner = make_runner(NAME)
    overlays = ("permuted_ids.yaml", "random_prototypes.yaml", "shuffled_tie.yaml")
    runner.train_here(*overlays, dataset_dir=team, **{**NETWORK, **SHORT, "epochs": 3, "val_interval": 3})
    settings = runner.record()["settings"]
    assert (settings["annotators_permuted"], settings["random_prototypes"], settings["tie"]) == (True, True, "shuffled")
    weights = torch.load(runner.root / "models" / "model.pt", weights_only=True)
    for bank in ("shared_bank", "tendency_bank"):
        assert (weights[f"{bank}.source"] == -1).all()
        torch.testing.assert_close(
            weights[f"{bank}.prototype"].norm(dim=-1), torch.ones(weights[f"{bank}.source"].shape[:2])
        )


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
