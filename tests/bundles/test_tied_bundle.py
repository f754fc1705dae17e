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


"""The bundle of the tied autoencoder, as its users run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_rrr.utils.files import sha256

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

TIED = "brats_mri_tied_autoencoder"
REGIONS, MODALITIES = ("WT", "TC", "ET"), ("t1", "t1c", "t2", "flair")
FILES = {"net_id": "network_def", "meta_file": "configs/metadata.json", "config_file": "configs/inference.yaml"}
SIZES = ((2, 4, 16, 16, 8), (1, 4, 32, 24, 12), (3, 4, 8, 17, 5))
SMALL = {"channels": [4, 8], "mask_share": 0.5}


@pytest.fixture(scope="module")
def tied(cohort: Any, make_runner: Callable[..., Any]) -> Any:
    """Return the bundle, trained for some steps on tags, and the masks of half of the cases."""
    runner = make_runner(TIED)
    runner.train(dataset_dir=cohort.masked, tags_file=cohort.tags, **SMALL)
    return runner


def test_training_leaves_a_classifier_and_six_numbers(tied: Any) -> None:
    weights = torch.load(tied.root / "models" / "model.pt", weights_only=True)
    beside = {name for name in weights if not name.startswith("encoder.")}
    assert beside == {"scale", "offset", "operating_point"}
    assert not torch.equal(weights["scale"], torch.ones(3)), "the decoder was trained"
    record = tied.record()
    assert (record["status"], record["settings"]["masks"], record["training_cases"]) == ("completed", 2, 4)
    assert record["settings"]["rules"].startswith("LRPRules(body=ZPlus(")
    assert record["weights"]["1.0"] == {"classification": 1.0, "segmentation": 1.0}
    steps = tied.rows()
    assert {row["term"] for row in steps} == {"total", "classification", "segmentation"}
    assert all(float(row["value"]) > 0 for row in steps)


def test_evaluation_scores_the_held_out_cases(tied: Any, cohort: Any, tmp_path: Path) -> None:
    options = {"dataset_dir": cohort.masked, "output_dir": tmp_path, "channels": [4, 8], "flips": [0]}
    tied.run("train.yaml", "evaluate.yaml", **options)
    rows = tied.rows(tmp_path / "metrics.csv")
    assert len({row["case_id"] for row in rows}) == 2
    full = [row for row in rows if row["method"] == "full"]
    assert {row["threshold"] for row in full} == {"label_free", "tag_calibrated", "fixed", "oracle"}
    assert all(0 <= float(row["dice"]) <= 1 for row in full)
    assert {float(row["level"]) for row in full if row["threshold"] == "fixed"} == {0.5}
    assert not list(tmp_path.rglob("*_relevance_*"))


def test_inference_writes_masks_scores_and_relevance(tied: Any, cohort: Any, tmp_path: Path) -> None:
    """The relevance of all modalities and the offset are the logit of the heatmap; blind cases, one modality absent."""
    data = {"dataset_dir": cohort.blind, "use_modalities": ["t1c", "t2", "flair"], "output_dir": tmp_path / "out"}
    tied.run("inference.yaml", channels=[4, 8], **data)
    folders = sorted((tmp_path / "out" / "cases").iterdir())
    assert len(folders) == 6
    for folder in folders:
        case = folder.name
        names = [f"heatmap_{r}" for r in REGIONS] + [f"relevance_{m}_{r}" for m in MODALITIES[1:] for r in REGIONS]
        written = {f"{case}_{name}.nii.gz" for name in ("pred", *names)} | {f"{case}_class_scores.json"}
        assert {path.name for path in folder.iterdir()} == written | {f"{case}_provenance.json"}
        record = json.loads((folder / f"{case}_provenance.json").read_text())
        assert set(record["outputs"]) == written
        assert record["weights_sha256"] == sha256(tied.root / "models" / "model.pt")
        assert record["settings"]["network"]["rules"].startswith("LRPRules(")
        like = nib.load(cohort.blind / case / f"{case}_t2.nii.gz")
        for name in ("pred", *names):
            image = nib.load(folder / f"{case}_{name}.nii.gz")
            assert image.shape == like.shape
            np.testing.assert_allclose(image.affine, like.affine, atol=1e-3)
            assert image.get_data_dtype() == (np.uint8 if name == "pred" else np.float32)
            assert np.isfinite(image.get_fdata()).all()
        scores = json.loads((folder / f"{case}_class_scores.json").read_text())
        assert list(scores) == list(REGIONS)
        assert all(0 < value < 1 for value in scores.values())
        assert nib.load(folder / f"{case}_relevance_flair_WT.nii.gz").get_fdata().any()
        assert not nib.load(folder / f"{case}_relevance_flair_WT.nii.gz").get_fdata()[like.get_fdata() == 0].all()


@pytest.mark.parametrize("overlay", ["tags_only", "untied", "unscaled", "rule_epsilon", "rule_gamma", "shuffled_masks"])
def test_overlays(overlay: str, tied: Any, cohort: Any, make_runner: Callable[..., Any], tmp_path: Path) -> None:
    runner = make_runner(TIED)
    options = {"channels": [4, 8]} if overlay == "tags_only" else SMALL
    data = {"tags_file": cohort.tags, "epochs": 1}
    runner.train_here(f"{overlay}.yaml", dataset_dir=cohort.masked, **data, **options)
    record = runner.record()
    settings, usual = record["settings"], tied.record()["settings"]
    weights = torch.load(runner.root / "models" / "model.pt", weights_only=True)
    assert any(name.startswith("decoder.") for name in weights) == (overlay == "untied")
    changed = {key for key in settings if settings[key] != usual[key]}
    expected = {"tags_only": {"mask_share", "masks"}, "untied": {"tied"}, "unscaled": {"scale"}}
    expected |= {"shuffled_masks": {"shuffle_masks"}}
    assert changed == expected.get(overlay, {"rules"})
    terms = runner.terms() - {"total"}
    assert terms == ({"classification"} if overlay == "tags_only" else {"classification", "segmentation"})
    if overlay in ("untied", "rule_epsilon"):
        names = ("inference.yaml", f"{overlay}.yaml")
        runner.run(*names, dataset_dir=cohort.blind, output_dir=tmp_path, channels=[4, 8], per_modality=False)
        assert len(list(tmp_path.glob("cases/*/*_pred.nii.gz"))) == 6
        assert not list(tmp_path.rglob("*_relevance_*"))


def test_default_rules_are_those_of_the_overlay(tied: Any) -> None:
    def rules(*overlays: str) -> str:
        files = [str(tied.root / "configs" / name) for name in ("inference.yaml", *overlays)]
        workflow = ConfigWorkflow(files, workflow_type="infer", logging_file=False, bundle_root=str(tied.root))
        return str(workflow.parser.get_parsed_content("rules"))

    assert rules() == rules("rule_zplus.yaml") != rules("rule_epsilon.yaml") != rules("rule_gamma.yaml")


def test_stopped_and_resumed_training_is_the_uninterrupted_one(cohort: Any, resumable: Callable[..., Any]) -> None:
    data = {"dataset_dir": str(cohort.masked), "tags_file": str(cohort.tags)}
    trainings = resumable(TIED, **data, **SMALL, epochs=3, slabs_per_case=4, batch_size=2)
    trainings.train("whole")
    trainings.interrupt("run")
    trainings.train("run", resume=True)
    trainings.check_equal("run", "whole")


def test_two_processes_end_with_one_network(cohort: Any, make_runner: Callable[..., Any]) -> None:
    runner = make_runner(TIED)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    data = {"dataset_dir": cohort.masked, "tags_file": cohort.tags, "device": "cpu", "dist_backend": "gloo"}
    runner.train("multi_gpu_train.yaml", launcher=launcher, slabs_per_case=4, epochs=1, **data, **SMALL)
    record = runner.record()
    assert (record["processes"], record["iterations_per_epoch"]) == (2, 4)
    assert [path.name for path in (runner.root / "models").glob("*.pt")] == ["model.pt"]


def test_network_fits_the_metadata(tied: Any) -> None:
    for n in (1, 4):
        done = tied.call("verify_net_in_out", **FILES, n=n)
        assert "verified with no error" in done.stdout + done.stderr


@pytest.mark.parametrize("output", ["segmentation", "logits"])
def test_torchscript_computes_the_same(output: str, tied: Any) -> None:
    """By tracing; what was traced runs at any size and keeps the cut of odd ones."""
    options = {"ckpt_file": "models/model.pt", "channels": SMALL["channels"], "network_def#output": output}
    shape = {"use_trace": True, "input_shape": list(SIZES[0])}
    tied.call("ckpt_export", **FILES, filepath=f"models/{output}.ts", **options, **shape)
    network = tied.network(**{"channels": SMALL["channels"], "network_def#output": output})
    traced = torch.jit.load(tied.root / "models" / f"{output}.ts")
    for size in SIZES:
        with torch.no_grad():
            found, expected = traced(tied.image(size)), network(tied.image(size))
        assert expected.shape[:2] == (size[0], 3)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("output", ["segmentation", "logits"])
def test_onnx_computes_the_same(output: str, tied: Any) -> None:
    axes = {0: "batch", 2: "height", 3: "width", 4: "depth"}
    dynamic = {"image": axes, "pred": axes if output == "segmentation" else {0: "batch"}}
    converter = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": dynamic}
    options = {"ckpt_file": "models/model.pt", "channels": SMALL["channels"], "network_def#output": output}
    shape = {"input_shape": list(SIZES[0]), "converter_kwargs": converter}
    tied.call("onnx_export", **FILES, filepath=f"models/{output}.onnx", **options, **shape)
    network = tied.network(**{"channels": SMALL["channels"], "network_def#output": output})
    session = onnxruntime.InferenceSession(tied.root / "models" / f"{output}.onnx")
    for size in SIZES:
        (found,) = session.run(None, {"image": tied.image(size).numpy()})
        with torch.no_grad():
            expected = network(tied.image(size)).numpy()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-3)
