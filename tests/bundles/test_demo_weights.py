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

"""The demonstration weights that the bundle for mixed supervision comes with."""

from __future__ import annotations

import ast
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_rrr.data import generate_cohort
from monai_rrr.metrics import region_scores
from monai_rrr.transforms import to_regions
from monai_rrr.utils.manifest import read_manifest
from monai_rrr.utils.weights import load_weights

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "brats_mri_right_reasons"
WEIGHTS = BUNDLE / "models" / "model.pt"
FRESH = 77


def test_they_are_those_of_the_manifest_and_fit_the_settings_of_inference() -> None:
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    network = parser.get_parsed_content("network_def")
    load_weights(network, WEIGHTS, require_manifest=True)
    assert WEIGHTS.stat().st_size < 2e6
    assert network.tendency_bank.frozen.any(), "prototypes are patches of training cases"
    assert not network.tendency_bank.queue.any(), "embeddings of training cases are not in the file"
    assert not torch.equal(network.cam.operating_point, torch.tensor([[0.5, 0.0]]).repeat(3, 1)), "calibrated"


def test_the_manifest_says_what_the_committed_command_does() -> None:
    about = read_manifest(WEIGHTS)["about"]
    script = (ROOT / "benchmarks" / "demo_weights.py").read_text("utf-8")
    values = {
        node.target.id: ast.literal_eval(node.value)
        for node in ast.parse(script).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    }
    assert about["trained_on"] == {"monai-rrr phantom": values["COHORT"]}
    assert {name: about[name] for name in values["TRAINING"]} == values["TRAINING"]
    assert values["COHORT"]["seed"] != FRESH


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_they_find_the_tumor_of_a_fresh_case(tmp_path: Path) -> None:
    """Files, options and all as the documentation has it: no settings are given."""
    generate_cohort(tmp_path / "studies", 3, FRESH, controls=0.0)
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / "inference.yaml"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(BUNDLE),
        dataset_dir=str(tmp_path / "studies"),
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    dice, inside = [], []
    for folder in sorted((tmp_path / "out" / "cases").iterdir()):
        case = folder.name
        truth, found = (
            np.asarray(to_regions(np.asarray(nib.load(path).dataobj).astype(np.uint8), "brats2018")).astype(bool)
            for path in (tmp_path / "studies" / case / f"{case}_seg.nii.gz", folder / f"{case}_pred.nii.gz")
        )
        dice.append(region_scores(found, truth, (3.0, 3.0, 3.0), scores=("dice",))["WT"]["dice"])
        heatmap = np.asarray(nib.load(folder / f"{case}_heatmap_WT.nii.gz").dataobj)
        inside.append(heatmap[truth[0]].mean() / heatmap[heatmap > 0].mean())
    assert len(dice) == 3
    assert np.mean(dice) > 0.6, dice
    assert np.mean(inside) > 1.5, "heatmaps are larger in the tumor than in the brain"
