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


"""``monai-rrr explain`` with any MONAI network, and with a bundle of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet121
from typer.testing import CliRunner

from monai_rrr.cli import app

CONFIG = """
network_def:
  _target_: monai.networks.nets.DenseNet
  spatial_dims: 3
  in_channels: 2
  out_channels: 3
  init_features: 4
  growth_rate: 2
  block_config: [1, 1]
"""


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def case(phantom_cohort: Path) -> Path:
    return sorted(path for path in phantom_cohort.iterdir() if path.is_dir())[0]


@pytest.fixture
def network(tmp_path: Path) -> list[Any]:
    """Return the options that name a small classifier and its weights."""
    config, weights = tmp_path / "net.yaml", tmp_path / "net.pt"
    config.write_text(CONFIG)
    net = DenseNet121(
        spatial_dims=3, in_channels=2, out_channels=3, init_features=4, growth_rate=2, block_config=(1, 1)
    )
    torch.save(net.state_dict(), weights)
    return ["--config", config, "--checkpoint", weights, "--modality", "t1c", "--modality", "flair"]


def test_any_network_gives_heatmap_mask_and_picture_in_the_geometry_of_the_case(
    case: Path, network: list[Any], tmp_path: Path
) -> None:
    result = run("explain", case, "--out", tmp_path / "out", *network, "--layer", "features.denseblock2", "--class", 2)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / case.name
    image = nib.load(case / f"{case.name}_t1.nii.gz")
    heatmap = nib.load(folder / f"{case.name}_heatmap_class2.nii.gz")
    mask = nib.load(folder / f"{case.name}_mask_class2.nii.gz")
    for found in (heatmap, mask):
        assert found.shape == image.shape
        assert np.allclose(found.affine, image.affine)
    assert np.asarray(heatmap.dataobj).max() == pytest.approx(1.0, abs=0.2)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}
    assert (folder / f"{case.name}.png").stat().st_size > 1000


def test_layers_are_listed(case: Path, network: list[Any], tmp_path: Path) -> None:
    result = run("explain", case, "--out", tmp_path / "out", *network, "--list-layers")
    assert result.exit_code == 0, result.output
    assert "features.denseblock2" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "expected either --bundle, or --config"),
        (["--bundle", "x", "--config", "y"], "expected either --bundle, or --config"),
        (["--config", "net.yaml"], "expected --checkpoint with --config"),
        (["--config", "net.yaml", "--checkpoint", "net.pt"], "expected --layer NAME; --list-layers shows the choice"),
    ],
)
def test_options_that_do_not_fit_are_named(case: Path, words: list[str], text: str) -> None:
    result = run("explain", case, *words)
    assert result.exit_code == 2
    assert text in result.output


def test_a_case_can_be_given_as_files(case: Path, network: list[Any], tmp_path: Path) -> None:
    images = [
        f"--image={name}={case / f'{case.name}_{part}.nii.gz'}" for name, part in (("t1c", "t1ce"), ("flair",) * 2)
    ]
    result = run("explain", *images, "--out", tmp_path / "out", *network, "--layer", "features.denseblock2")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").glob("*/*_heatmap_class*.nii.gz"))) == 1


def test_a_bundle_needs_trained_weights(case: Path, tmp_path: Path) -> None:
    words = ("--bundle", "brats_mri_equivariant_cam", "--checkpoint", tmp_path / "none.pt")
    result = run("explain", case, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert "[checkpoint-missing]" in result.output


def test_code_in_a_config_is_refused(case: Path, network: list[Any], tmp_path: Path) -> None:
    network[1].write_text(CONFIG.replace("in_channels: 2", "in_channels: $1 + 1"))
    result = run("explain", case, "--out", tmp_path / "out", *network, "--layer", "features.denseblock2")
    assert result.exit_code == 2
    assert "error: [config-code]" in result.output


@pytest.mark.slow
def test_bundle_writes_label_map_heatmaps_and_picture(case: Path, tmp_path: Path) -> None:
    from monai.bundle import ConfigParser

    from monai_rrr.cli.bundle_run import find_bundle

    parser = ConfigParser()
    parser.read_config(str(find_bundle("brats_mri_equivariant_cam") / "configs" / "inference.yaml"))
    weights = tmp_path / "model.pt"
    torch.save(parser.get_parsed_content("network_def").state_dict(), weights)
    result = run(
        "explain", case, "--out", tmp_path / "out", "--bundle", "brats_mri_equivariant_cam", "--checkpoint", weights
    )
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / case.name
    names = {path.name.removeprefix(f"{case.name}_") for path in folder.iterdir()}
    assert {"pred.nii.gz", "heatmap_WT.nii.gz", "heatmap_t1c_ET.nii.gz", f"{case.name}.png"} <= names
    label = nib.load(folder / f"{case.name}_pred.nii.gz")
    image = nib.load(case / f"{case.name}_t1.nii.gz")
    assert label.shape == image.shape
    assert np.allclose(label.affine, image.affine)
    assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2, 4}
