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
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import resnet10
from typer.testing import CliRunner

from monai_rrr.cli import app, explain_bundle
from monai_rrr.data import load_datalist
from monai_rrr.utils.tensor_file import write_tensors

RESNET = {
    "_target_": "monai.networks.nets.resnet10",
    "spatial_dims": 3,
    "n_input_channels": 2,
    "num_classes": 3,
    "widen_factor": 0.125,
}


@pytest.fixture
def network(tmp_path: Path) -> list[str]:
    """Return the options that name a small network with its weights."""
    options = {key: value for key, value in RESNET.items() if key != "_target_"}
    torch.save(resnet10(**options).state_dict(), tmp_path / "net.pt")
    (tmp_path / "net.json").write_text(json.dumps({"network_def": RESNET}))
    files = ["--config", str(tmp_path / "net.json"), "--checkpoint", str(tmp_path / "net.pt")]
    return [*files, "--modality", "t1c", "--modality", "flair"]


@pytest.fixture
def case(phantom_cohort: Path) -> Path:
    return sorted(path for path in phantom_cohort.iterdir() if path.is_dir())[0]


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def test_explain_any_network(case: Path, network: list[str], tmp_path: Path) -> None:
    code, text, errors = run(
        "explain", case, *network, "--layer", "layer2", "--class", 0, "--class", 2, "--out", tmp_path
    )
    assert code == 0, errors
    names = ["heatmap_class0.nii.gz", "mask_class0.nii.gz", "heatmap_class2.nii.gz", "mask_class2.nii.gz"]
    folder = tmp_path / case.name
    files = [*(f"{case.name}_{name}" for name in names), f"{case.name}.png", f"{case.name}_provenance.json"]
    assert text.split() == [str(folder / name) for name in files]
    source = nib.load(case / f"{case.name}_flair.nii.gz")
    written = nib.load(folder / f"{case.name}_heatmap_class2.nii.gz")
    assert written.shape == source.shape
    np.testing.assert_allclose(written.affine, source.affine)


def test_explain_takes_single_files(case: Path, network: list[str], tmp_path: Path) -> None:
    images = [
        f"--image={name}={case / f'{case.name}_{file}.nii.gz'}" for name, file in (("t1c", "t1ce"), ("flair", "flair"))
    ]
    code, text, errors = run("explain", *images, *network, "--layer", "layer2", "--out", tmp_path)
    assert code == 0, errors
    assert f"{case.name}_t1ce.png" in text


def test_explain_lists_layers(case: Path, network: list[str]) -> None:
    code, text, errors = run("explain", case, *network, "--list-layers")
    assert code == 0, errors
    assert "layer3" in [line.split()[0] for line in text.splitlines()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["case"], "expected either --bundle, or --config"),
        (["case", "--bundle", "a", "--config", "b"], "expected either --bundle, or --config"),
        (["--bundle", "a"], "expected either CASE, or --image"),
        (["--image", "flair", "--bundle", "a"], "expected --image NAME=FILE"),
        (["case", "--config", "b"], "expected --checkpoint"),
        (["case", "--config", "b", "--checkpoint", "c"], "expected --layer NAME"),
    ],
)
def test_explain_refuses_what_does_not_fit(words: list[str], message: str) -> None:
    code, _, errors = run("explain", *words)
    assert code == 2
    assert message in " ".join(errors.replace("│", " ").split())


def test_explain_without_weights(case: Path, tmp_path: Path) -> None:
    words = ["--bundle", "brats_mri_equivariant_cam", "--checkpoint", tmp_path / "none.pt", "--out", tmp_path / "out"]
    code, _, errors = run("explain", case, *words)
    assert code == 2
    assert "[checkpoint-missing]" in errors
    assert not (tmp_path / "out").exists()


def test_explain_with_a_bundle(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's own process is replaced: what it would write is written here."""
    seen = {}

    def inference(what: str, bundle: Path, configs: tuple[str, ...], options: dict, log: Path, state: object) -> None:
        seen.update(options, configs=configs, bundle=bundle.name)
        [entry] = load_datalist(options["dataset_dir"], with_labels=False)
        image = nib.load(entry["modalities"]["flair"])
        folder = Path(options["output_dir"]) / "cases" / entry["case_id"]
        folder.mkdir(parents=True)
        for region in ("WT", "TC", "ET"):
            heatmap = np.asarray(image.dataobj, dtype=np.float32) / image.get_fdata().max()
            nib.save(nib.Nifti1Image(heatmap, image.affine), folder / f"{entry['case_id']}_heatmap_{region}.nii.gz")
        mask = np.zeros(image.shape, np.uint8)
        nib.save(nib.Nifti1Image(mask, image.affine), folder / f"{entry['case_id']}_pred.nii.gz")

    monkeypatch.setattr(explain_bundle, "run_bundle", inference)
    write_tensors(tmp_path / "model.pt", {"weight": torch.ones(1)})
    words = ["--bundle", "brats_mri_equivariant_cam", "--checkpoint", tmp_path / "model.pt", "--convention", "msd"]
    code, text, errors = run("explain", case, *words, "--out", tmp_path / "out")
    assert code == 0, errors
    assert text.strip() == str(tmp_path / "out" / case.name / f"{case.name}.png")
    assert (seen["configs"], seen["label_convention"]) == (("inference.yaml",), "msd")
    kept = sorted(path.name.removeprefix(case.name) for path in (tmp_path / "out" / case.name).iterdir())
    assert kept == [".png", "_heatmap_ET.nii.gz", "_heatmap_TC.nii.gz", "_heatmap_WT.nii.gz", "_pred.nii.gz"]
    assert not Path(seen["output_dir"]).exists()


def test_report_without_scores(phantom_cohort: Path, tmp_path: Path) -> None:
    words = ["report", tmp_path, "--data", phantom_cohort, "--convention", "brats2018", "--out", tmp_path / "report"]
    code, _, errors = run(*words)
    assert code == 2
    assert "[metrics-missing]" in errors
    assert not (tmp_path / "report").exists()


def test_report_needs_a_convention(phantom_cohort: Path, tmp_path: Path) -> None:
    code, _, errors = run("report", tmp_path, "--data", phantom_cohort)
    assert code == 2
    assert "--convention" in errors
