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


"""The bundle for mixed supervision, as its users run it: tags, masks and marks on some cases of a synthetic cohort."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from typer.testing import CliRunner

from monai_rrr.cli import app
from monai_rrr.data import read_tags
from monai_rrr.utils.files import sha256

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

NAME = "brats_mri_right_reasons"
BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / NAME
ANNOTATORS = [f"a{number}" for number in range(1, 7)]
CAM = {"classification", "within_modal", "cross_modal", "mutual_learning", "nesting", "attention_mining"}
TENDENCY = {"segmentation", "mixture", "tie", "contrast", "distance", "diversity", "parsimony"}
TERMS = CAM | TENDENCY | {"guidance", "consensus", "signed_distance", "tagged_absence"}
TINY = {"decoder": [4, 8], "features": 8, "width": 16, "slots": 2, "shared_slots": 2, "queue": 1024, "voxels": 256}
SMALL = {"spacing": 6.0, "roi_size": [32, 32, 8], "channels": [4], **TINY}
SHORT = {"epochs": 5, "slabs_per_case": 2, "batch_size": 2, "val_interval": 5}


def values_of(runner: Any, term: str) -> list[float]:
    return [float(row["value"]) for row in runner.rows() if row["term"] == term]


@pytest.fixture(scope="module")
def sections(cohort: Any, team: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a manifest: the four cases that train have masks and tags, marks and tags, tags, and nothing."""
    folder = tmp_path_factory.mktemp("marks")
    content: dict[str, Any] = json.loads((team / "datalist.json").read_text())
    tags = read_tags(cohort.tags)
    for entry in (entry for section in content.values() for entry in section):
        for group in ("modalities", "annotations"):
            entry[group] = {name: path and str((team / path).resolve()) for name, path in entry[group].items()}
        if "label" in entry:
            entry["label"] = str((team / entry["label"]).resolve())
        entry["tags"] = tags[entry["case_id"]]
    drawn, marked, tagged, plain = content["training"]
    assert tags[marked["case_id"]]["WT"] is not None
    image = nib.load(marked["modalities"]["flair"])
    for kind, part in (("allowed", np.s_[5:-5, 5:-5]), ("not_allowed", np.s_[:8, :8])):
        mark = np.zeros(image.shape, np.uint8)
        mark[part] = 1
        nib.save(nib.Nifti1Image(mark, image.affine), folder / f"{kind}.nii.gz")
    marked["evidence"] = {kind: str(folder / f"{kind}.nii.gz") for kind in ("allowed", "not_allowed")}
    for entry in (marked, tagged, plain):
        del entry["annotations"]
    del plain["tags"], content["test"][1]["annotations"]
    assert "annotations" in drawn
    return {"training": content["training"], "test": content["test"]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what writes a manifest and returns the options that name it."""

    def written(content: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / "datalist.json").write_text(json.dumps(content))
        return {"dataset_dir": tmp_path, **TINY, **SHORT}

    return written


@pytest.fixture(scope="module")
def data(sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "datalist.json").write_text(json.dumps(sections))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, make_runner: Callable[..., Any]) -> Any:
    """Return the bundle, trained for some steps in all stages."""
    runner = make_runner(NAME)
    runner.run("train.yaml", dataset_dir=data, **{**TINY, **SHORT})
    return runner


def test_training_uses_what_each_case_has(trained: Any) -> None:
    record = trained.record()
    assert (record["status"], record["training_cases"], record["skipped_steps"]) == ("completed", 4, 0)
    assert record["settings"]["supervision"] == {
        **{"cases": 4, "tags": 3, "annotations": 1, "masks": 6, "evidence": 1, "unlabeled": 1},
    }
    assert trained.terms() == {"total", *TERMS}
    for term in ("classification", "consensus", "segmentation", "guidance"):
        assert max(values_of(trained, term)) > 0
    weights = torch.load(trained.root / "models" / "model.pt", weights_only=True)
    gamma = torch.stack([value for name, value in weights.items() if name.endswith("gamma")])
    assert gamma.abs().min() > 0, "the kernels were trained"
    assert weights["tendency.shared_bank.frozen"].any(), "prototypes are patches of training cases"
    assert not torch.equal(weights["cam.operating_point"], torch.tensor([[0.5, 0.0]]).repeat(3, 1)), "calibrated"


@pytest.fixture(scope="module")
def strong(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights with which annotators disagree."""
    return trained.strong_weights(tmp_path_factory.mktemp("strong") / "model.pt")


def check_who_and_why(folder: Path, images: Path) -> dict[str, Any]:
    """What holds for the files about annotators of every case; returns ``why.json``."""
    case = folder.name
    files = {path.name.removeprefix(f"{case}_"): path for path in folder.iterdir()}
    why: dict[str, Any] = json.loads(files["why.json"].read_text())
    maps = [*(f"seg_{name}" for name in ("consensus", "mixture", *ANNOTATORS)), *(f"tendency_{n}" for n in ANNOTATORS)]
    maps += ["prob_mean", "who", "who_prob", *(f"disagreement_{kind}" for kind in ("entropy", "js", "region"))]
    pictures = {f"why_{region['region']}.png" for region in why["regions"]}
    assert set(files) == {f"{name}.nii.gz" for name in maps} | pictures | {"why.json", "why.html", "provenance.json"}
    record = json.loads(files["provenance.json"].read_text())
    assert {path.name: sha256(path) for name, path in files.items() if name != "provenance.json"} == record["outputs"]
    like = nib.load(images / f"{case}_flair.nii.gz")
    for name in maps:
        image = nib.load(files[f"{name}.nii.gz"])
        assert image.shape[:3] == like.shape
        np.testing.assert_allclose(image.affine, like.affine, atol=1e-3)
    who = np.asarray(nib.load(files["who_prob.nii.gz"]).dataobj)
    assert who.shape[3] == 1 + len(ANNOTATORS)
    np.testing.assert_allclose(who.sum(-1), 1, atol=1e-4)
    assert why["annotators"] == ANNOTATORS
    assert why["regions"], "annotators disagree"
    for region in why["regions"]:
        assert sum(region["who"].values()) == pytest.approx(1, abs=1e-3)
        assert region["most_like"] in ANNOTATORS
    return why


def prototypes_of(why: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [source for region in why["regions"] for source in region["prototypes"]]


def test_evaluation_says_who_and_why(
    trained: Any, strong: Path, data: Path, sections: dict[str, Any], cohort: Any, tmp_path: Path
) -> None:
    """Prototypes are places of the only case that was drawn, named by its id."""
    options = {"dataset_dir": data, "output_dir": tmp_path, "scores": ["dice"], "checkpoint": strong, **TINY}
    trained.run("train.yaml", "evaluate.yaml", explained_regions=2, **options)
    folders = sorted((tmp_path / "annotators").iterdir())
    assert len(folders) == 2
    shown = [one for f in folders for one in prototypes_of(check_who_and_why(f, cohort.masked / f.name))]
    assert {(one["case"], one["case_number"]) for one in shown} <= {(sections["training"][0]["case_id"], 0)}
    words = ["report", tmp_path, "--annotators", "--data", data / "datalist.json", "--section", "test"]
    words += ["--convention", "brats2018", "--out", tmp_path / "report"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert text.count("<h3>") == 2 * len(ANNOTATORS) + 1, "cards as drawn and as predicted, and the case that was drawn"


def test_evaluation_scores_heatmaps_annotators_and_consensus(trained: Any, data: Path, tmp_path: Path) -> None:
    options = {"dataset_dir": data, "output_dir": tmp_path, "scores": ["dice"], "flips": [0], **TINY}
    trained.run("train.yaml", "evaluate.yaml", **options)
    heatmaps = [row for row in trained.rows(tmp_path / "metrics.csv") if row["method"] == "full"]
    assert {row["threshold"] for row in heatmaps} == {"label_free", "tag_calibrated", "oracle"}
    assert len({row["case_id"] for row in heatmaps}) == 2
    rows = trained.rows(tmp_path / "annotators.csv")
    found = sorted({(row["case_id"], row["annotator"]) for row in rows})
    first, second = sorted({row["case_id"] for row in rows})
    assert found == sorted([*((first, name) for name in (*ANNOTATORS, "consensus", "all")), (second, "consensus")])
    assert all(0 <= float(row["dice"]) <= 1 for row in rows if row["annotator"] == "consensus")
    for name in ("metrics", "annotators"):
        record = json.loads((tmp_path / f"{name}_provenance.json").read_text())
        assert record["weights_sha256"] == sha256(trained.root / "models" / "model.pt")


@pytest.mark.parametrize("used", [["t1", "t1c", "t2", "flair"], ["flair"]], ids=["all", "one"])
def test_inference_writes_everything_there_is_to_say(
    trained: Any, strong: Path, cohort: Any, tmp_path: Path, used: list[str]
) -> None:
    """With one modality, the files of the others are not read, and have no heatmap."""
    options = {"use_modalities": used, "checkpoint": strong, "explained_regions": 1}
    trained.run("inference.yaml", dataset_dir=cohort.blind, output_dir=tmp_path, **options, **TINY)
    folders = sorted((tmp_path / "cases").iterdir())
    assert len(folders) == 6
    shown = []
    for folder in folders:
        case = folder.name
        regions = [f"{prefix}{region}" for prefix in ("", *(f"{m}_" for m in used)) for region in ("WT", "TC", "ET")]
        maps = {f"{case}_heatmap_{name}.nii.gz" for name in regions} | {f"{case}_pred.nii.gz"}
        written = maps | {f"{case}_class_scores.json"}
        assert {path.name for path in folder.iterdir()} == written | {f"{case}_provenance.json"}
        record = json.loads((folder / f"{case}_provenance.json").read_text())
        assert {name: sha256(folder / name) for name in written} == record["outputs"]
        scores = json.loads((folder / f"{case}_class_scores.json").read_text())
        assert all(0 <= scores[region] <= 1 for region in ("WT", "TC", "ET"))
        beside = tmp_path / "annotators" / case
        shown += prototypes_of(check_who_and_why(beside, cohort.blind / case))
        like = nib.load(cohort.blind / case / f"{case}_flair.nii.gz")
        for path in [folder / name for name in maps]:
            image = nib.load(path)
            assert image.shape == like.shape
            np.testing.assert_allclose(image.affine, like.affine, atol=1e-3)
        label = np.asarray(nib.load(folder / f"{case}_pred.nii.gz").dataobj)
        np.testing.assert_array_equal(label, nib.load(beside / f"{case}_seg_consensus.nii.gz").dataobj)
        assert set(np.unique(label)) <= {0, 1, 2, 4}
    assert {(source["case"], source["case_number"]) for source in shown} <= {(None, 0)}, "without the training list"


def test_inference_with_the_training_list_names_training_cases(
    trained: Any, strong: Path, sections: dict[str, Any], data: Path, cohort: Any, tmp_path: Path
) -> None:
    first = min(path for path in cohort.blind.iterdir() if path.is_dir())
    options = {"training_list": data / "datalist.json", "checkpoint": strong, "explained_regions": 2}
    trained.run("inference.yaml", dataset_dir=first, output_dir=tmp_path, **options, **TINY)
    [folder] = (tmp_path / "annotators").iterdir()
    cases = {source["case"] for source in prototypes_of(check_who_and_why(folder, first))}
    assert cases <= {sections["training"][0]["case_id"]}


def test_stopped_and_resumed_training_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    def workflow(folder: str, **options: Any) -> ConfigWorkflow:
        made = ConfigWorkflow(
            config_file=str(BUNDLE / "configs" / "train.yaml"),
            workflow_type="train",
            logging_file=False,
            bundle_root=str(BUNDLE),
            dataset_dir=str(data),
            output_dir=str(tmp_path / folder),
            ckpt_dir=str(tmp_path / folder / "models"),
            cache_dir=str(tmp_path / "cache"),
            device="cpu",
            **{**SMALL, **SHORT, **options},
        )
        made.initialize()
        return made

    whole = workflow("whole")
    whole.run()
    whole.finalize()
    first = workflow("run")
    trainer = first.parser.get_parsed_content("train#trainer")
    middle = trainer.state.epoch_length * 2 + trainer.state.epoch_length // 2
    trainer.add_event_handler(Events.ITERATION_STARTED(once=middle), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        first.run()
    first.finalize()
    second = workflow("run", resume=True, num_workers=2)
    second.run()
    second.finalize()
    for name in ("models/model.pt", "training.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_processes_end_with_one_network(data: Path, make_runner: Callable[..., Any]) -> None:
    runner = make_runner(NAME)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    options = {"dataset_dir": data, "device": "cpu", "dist_backend": "gloo", **TINY, **SHORT, "epochs": 6}
    runner.run("train.yaml", "multi_gpu_train.yaml", launcher=launcher, **options)
    record = runner.record()
    assert (record["status"], record["processes"]) == ("completed", 2)
    assert [path.name for path in (runner.root / "models").glob("*.pt")] == ["model.pt"]


def test_tags_alone(sections: Any, write: Any, make_runner: Callable[..., Any]) -> None:
    """Nobody drew anything: the terms on masks are 0, and there are no prototypes."""
    for entry in (training := json.loads(json.dumps(sections["training"]))):
        entry.pop("annotations", None)
        entry.pop("evidence", None)
    runner = make_runner(NAME)
    runner.train_here(**write({**sections, "training": training}))
    for term in ("guidance", "segmentation", "consensus", "mixture", "tie", "contrast", "parsimony", "signed_distance"):
        assert set(values_of(runner, term)) == {0.0}
    assert min(values_of(runner, "classification")) > 0
    assert min(values_of(runner, "tagged_absence")) > 0
    weights = torch.load(runner.root / "models" / "model.pt", weights_only=True)
    assert not weights["tendency.shared_bank.prototype"].any()


def test_masks_alone(sections: Any, write: Any, make_runner: Callable[..., Any]) -> None:
    """Nobody noted a tag: the masks tell those of the slices that they know, and nothing is calibrated."""
    training = [json.loads(json.dumps(sections["training"][0]))]
    del training[0]["tags"]
    runner = make_runner(NAME)
    runner.train_here(**write({"training": training}), test_section="")
    assert min(values_of(runner, "consensus")) > 0
    assert max(values_of(runner, "classification")) > 0
    weights = torch.load(runner.root / "models" / "model.pt", weights_only=True)
    assert torch.equal(weights["cam.operating_point"], torch.tensor([[0.5, 0.0]]).repeat(3, 1))


def test_some_modalities(sections: Any, write: Any, make_runner: Callable[..., Any]) -> None:
    training = json.loads(json.dumps(sections["training"]))
    del training[1]["modalities"]["t1"]
    runner = make_runner(NAME)
    options = {**write({**sections, "training": training}), "use_modalities": ["t1", "flair"], "epochs": 2}
    runner.train_here(**options)
    assert runner.record()["settings"]["modalities"] == ["t1", "flair"]


@pytest.mark.parametrize("overlay", ["without_tendency", "masks_only"])
def test_training_goes_on_without_a_family_of_terms(data: Path, make_runner: Callable[..., Any], overlay: str) -> None:
    runner = make_runner(NAME)
    runner.train_here(f"{overlay}.yaml", dataset_dir=data, **{**TINY, **SHORT})
    weights = runner.record()["weights"]["1.0"]
    seen = runner.terms()
    assert seen == {"total"} | {term for term, weight in weights.items() if weight}
    assert runner.record()["status"] == "completed"


def test_network_fits_the_metadata(trained: Any) -> None:
    files = {"net_id": "network_def", "meta_file": "configs/metadata.json", "config_file": "configs/inference.yaml"}
    done = trained.call("verify_net_in_out", **files, n=2)
    assert "verified with no error" in done.stdout + done.stderr


def test_exported_networks_compute_the_same(trained: Any) -> None:
    import onnxruntime

    files = {"net_id": "network_def", "meta_file": "configs/metadata.json", "config_file": "configs/inference.yaml"}
    options = {**files, "ckpt_file": "models/model.pt", "channels": [4], "input_shape": [1, 4, 16, 16, 8], **TINY}
    trained.call("ckpt_export", filepath="models/model.ts", use_trace=True, **options)
    axes = {0: "batch", 2: "height", 3: "width", 4: "depth"}
    converter = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes, "pred": axes}}
    trained.call("onnx_export", filepath="models/model.onnx", converter_kwargs=converter, **options)
    settings = {name: value for name, value in TINY.items() if name != "voxels"}
    network = trained.network(channels=[4], **settings)
    traced = torch.jit.load(trained.root / "models" / "model.ts")
    session = onnxruntime.InferenceSession(trained.root / "models" / "model.onnx")
    for size in ((1, 4, 16, 16, 8), (2, 4, 32, 24, 12)):
        image = trained.image(size)
        with torch.no_grad():
            expected = network(image)
            torch.testing.assert_close(traced(image), expected, atol=1e-4, rtol=0)
        (found,) = session.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=0)
