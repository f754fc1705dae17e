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


"""``monai-rrr audit`` and ``explain`` on networks that are given by config, checkpoint and layer alone."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from typer.testing import CliRunner

from monai_rrr.cli import app, explain_bundle
from monai_rrr.cli.bundle_run import find_bundle
from monai_rrr.data import load_datalist
from monai_rrr.utils.tensor_file import write_tensors

needs_einops = pytest.mark.skipif(find_spec("einops") is None, reason="MONAI's transformers need einops")
NETS = "monai.networks.nets"
RESNET10 = {
    "_target_": f"{NETS}.resnet10",
    "spatial_dims": 3,
    "n_input_channels": 4,
    "num_classes": 2,
    "widen_factor": 0.125,
}
NETWORKS: dict[str, tuple[dict[str, Any], list[object]]] = {
    "DenseNet121": (
        {
            "_target_": f"{NETS}.DenseNet121",
            "spatial_dims": 3,
            "in_channels": 4,
            "out_channels": 2,
            "init_features": 8,
            "growth_rate": 4,
        },
        ["--layer", "features.denseblock3"],
    ),
    "ResNet18": ({**RESNET10, "_target_": f"{NETS}.resnet18"}, ["--layer", "layer3"]),
    "SegResNet encoder": (
        {
            "_target_": "monai_rrr.networks.EncoderClassifier",
            "encoder": {
                "_target_": f"{NETS}.segresnet_ds.SegResEncoder",
                "in_channels": 4,
                "init_filters": 8,
                "blocks_down": [1, 1, 1],
            },
            "channels": 32,
            "num_classes": 2,
        },
        ["--layer", "features"],
    ),
    "half of a SegResNet": (
        {
            "_target_": "monai_rrr.networks.SegmenterClassifier",
            "network": {
                "_target_": f"{NETS}.SegResNet",
                "spatial_dims": 3,
                "init_filters": 8,
                "in_channels": 4,
                "blocks_down": [1, 1, 1],
                "blocks_up": [1, 1],
            },
            "num_classes": 2,
        },
        ["--layer", "features"],
    ),
    "SegResNet": (
        {
            "_target_": f"{NETS}.SegResNet",
            "spatial_dims": 3,
            "init_filters": 8,
            "in_channels": 4,
            "out_channels": 3,
            "blocks_down": [1, 1, 1],
            "blocks_up": [1, 1],
        },
        ["--layer", "down_layers.2"],
    ),
    "UNETR encoder": (
        {
            "_target_": "monai_rrr.networks.EncoderClassifier",
            "encoder": {
                "_target_": f"{NETS}.ViT",
                "in_channels": 4,
                "img_size": [32, 32, 32],
                "patch_size": [8, 8, 8],
                "hidden_size": 24,
                "mlp_dim": 24,
                "num_layers": 2,
                "num_heads": 2,
            },
            "channels": 24,
            "num_classes": 2,
            "output": 0,
            "grid": [4, 4, 4],
        },
        ["--layer", "features", "--size", 32, 32, 32],
    ),
    "UNETR": (
        {
            "_target_": f"{NETS}.UNETR",
            "in_channels": 4,
            "out_channels": 3,
            "img_size": [32, 32, 32],
            "feature_size": 4,
            "hidden_size": 24,
            "mlp_dim": 24,
            "num_heads": 2,
        },
        ["--layer", "encoder3", "--size", 32, 32, 32],
    ),
    "SwinUNETR encoder": (
        {
            "_target_": "monai_rrr.networks.EncoderClassifier",
            "encoder": {
                "_target_": f"{NETS}.swin_unetr.SwinTransformer",
                "in_chans": 4,
                "embed_dim": 12,
                "window_size": [4, 4, 4],
                "patch_size": [2, 2, 2],
                "depths": [1, 1, 1, 1],
                "num_heads": [1, 1, 1, 1],
            },
            "channels": 48,
            "num_classes": 2,
            "output": 2,
        },
        ["--layer", "features"],
    ),
    "SwinUNETR": (
        {
            "_target_": f"{NETS}.SwinUNETR",
            "in_channels": 4,
            "out_channels": 3,
            "feature_size": 12,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
        },
        ["--layer", "encoder3", "--size", 64, 32, 32],
    ),
}


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, " ".join(result.stderr.replace("│", " ").split())


def files(folder: Path, definition: dict[str, Any]) -> list[object]:
    """Write config and checkpoint of a network; return the options that name them."""
    network = ConfigParser({"network_def": definition}).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "net.pt")
    (folder / "net.json").write_text(json.dumps({"network_def": definition}))
    return ["--config", folder / "net.json", "--checkpoint", folder / "net.pt"]


@pytest.fixture
def two_cases(phantom_cohort: Path, tmp_path: Path) -> Path:
    """A datalist of two cases, the second one without a mask."""
    first, second = load_datalist(phantom_cohort)[:2]
    del second["label"]
    (tmp_path / "cases.json").write_text(json.dumps({"training": [first, second]}))
    return tmp_path / "cases.json"


@pytest.mark.parametrize(
    "name",
    [
        "ResNet18",
        pytest.param("DenseNet121", marks=pytest.mark.slow),
        pytest.param("SegResNet encoder", marks=pytest.mark.slow),
        pytest.param("UNETR encoder", marks=[pytest.mark.slow, needs_einops]),
        pytest.param("half of a SegResNet", marks=pytest.mark.slow),
        pytest.param("SegResNet", marks=pytest.mark.slow),
        pytest.param("UNETR", marks=[pytest.mark.slow, needs_einops]),
        pytest.param("SwinUNETR encoder", marks=[pytest.mark.slow, needs_einops]),
        pytest.param("SwinUNETR", marks=[pytest.mark.slow, needs_einops]),
    ],
)
def test_explain_and_audit_by_config_alone(name: str, two_cases: Path, tmp_path: Path) -> None:
    definition, words = NETWORKS[name]
    options = [*files(tmp_path, definition), *words, "--class", 1, "--spacing", 8]
    code, _, errors = run("explain", two_cases, *options, "--out", tmp_path / "explained")
    assert code == 0, errors
    for case in load_datalist(two_cases):
        source = nib.load(case["modalities"]["t1"])
        heatmap = nib.load(tmp_path / "explained" / case["case_id"] / f"{case['case_id']}_heatmap_class1.nii.gz")
        assert heatmap.shape == source.shape
        assert np.isfinite(np.asarray(heatmap.dataobj)).all()
    code, text, errors = run("audit", two_cases, *options, "--out", tmp_path / "audit", "--sanity", 1)
    assert code == 0, errors
    assert text.strip() == str(tmp_path / "audit" / "index.html")
    html = (tmp_path / "audit" / "index.html").read_text("utf-8")
    assert "1 cases with a lesion mask" in html
    assert "1 cases without a lesion or without a mask" in html
    assert "similarity is" in html
    assert len(re.findall("<h3>", html)) == 2
    assert "log-odds lost without it" in html
    assert str(tmp_path) not in html
    assert "net.pt, SHA-256" in html


def test_region_and_predicted_class(two_cases: Path, tmp_path: Path) -> None:
    words = ["--layer", "layer2", "--spacing", 8, "--sanity", 0, "--region", "TC", "--convention", "brats2018"]
    code, _, errors = run("audit", two_cases, *files(tmp_path, RESNET10), *words, "--out", tmp_path / "a.html")
    assert code == 0, errors
    html = (tmp_path / "a.html").read_text("utf-8")
    assert "the predicted one" in html
    assert "<dt>lesion</dt><dd>TC</dd>" in html
    assert "<p>Not done.</p>" in html


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected either --bundle, or --config"),
        (["--bundle", "a", "--config", "b"], "expected either --bundle, or --config"),
        (["--config", "b"], "expected --checkpoint and --layer"),
        (["--config", "b", "--region", "NCR"], "expected --region WT, TC or ET, got NCR"),
        (["--config", "b", "--region", "TC"], "expected --convention NAME"),
        (["--bundle", "a"], "expected --convention NAME"),
        (["--bundle", "a", "--convention", "msd"], "[bundle-missing]"),
    ],
)
def test_refusals(words: list[str], message: str, two_cases: Path, tmp_path: Path) -> None:
    code, _, errors = run("audit", two_cases, *words, "--out", tmp_path / "audit")
    assert code == 2
    assert message in errors
    assert not (tmp_path / "audit").exists()


def audit_untrained_bundle(cases: Path, folder: Path) -> str:
    """Audit the equivariant CAM bundle with weights as they are at the start; return what is printed."""
    parser = ConfigParser()
    parser.read_config(str(find_bundle("brats_mri_equivariant_cam") / "configs" / "inference.yaml"))
    write_tensors(folder / "model.pt", parser.get_parsed_content("network_def").state_dict())
    words = ["--bundle", "brats_mri_equivariant_cam", "--checkpoint", folder / "model.pt"]
    code, text, errors = run(
        "audit", cases, *words, "--convention", "brats2018", "--out", folder / "audit", "--sanity", 1
    )
    assert code == 0, errors
    return text


def test_bundle(two_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's own process is replaced: what it would write is written here, by the weights that it is given."""
    seen = []

    def inference(what: str, bundle: Path, configs: tuple[str, ...], options: dict, log: Path, state: object) -> None:
        weights = torch.load(options["checkpoint"], weights_only=True)
        seen.append({name: value.clone() for name, value in weights.items()})
        rng = np.random.default_rng(len(seen))
        for entry in load_datalist(options["dataset_dir"]):
            image = nib.load(entry["modalities"]["flair"])
            folder = Path(options["output_dir"]) / "cases" / entry["case_id"]
            folder.mkdir(parents=True)
            for name in ("WT", "flair_WT"):
                heatmap = rng.random(image.shape, np.float32) * (np.asarray(image.dataobj) > 0)
                nib.save(nib.Nifti1Image(heatmap, image.affine), folder / f"{entry['case_id']}_heatmap_{name}.nii.gz")

    monkeypatch.setattr(explain_bundle, "run_bundle", inference)
    audit_untrained_bundle(two_cases, tmp_path)
    html = (tmp_path / "audit" / "index.html").read_text("utf-8")
    assert "Where does brats_mri_equivariant_cam look?" in html
    assert "share of its own evidence in the lesion" in html
    assert "passed: with all weights randomized the similarity is" in html
    assert re.search(r"<td>FLAIR</td>", html)
    assert len(seen) == 2
    changed = [name for name in seen[0] if not torch.equal(seen[0][name], seen[1][name])]
    assert any("trunk" in name for name in changed)


@pytest.mark.slow
def test_bundle_as_a_process(two_cases: Path, tmp_path: Path) -> None:
    text = audit_untrained_bundle(two_cases, tmp_path)
    html = Path(text.strip()).read_text("utf-8")
    assert "share of its own evidence in the lesion" in html
    assert "similarity is" in html
