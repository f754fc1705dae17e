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


"""``monai-rrr explain`` with a bundle, whose inference is a process of its own."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from typer.testing import CliRunner

from monai_rrr.cli import app
from monai_rrr.cli.bundle_run import find_bundle


@pytest.mark.slow
def test_bundle_writes_label_map_heatmaps_and_picture(phantom_cohort: Path, tmp_path: Path) -> None:
    case = sorted(path for path in phantom_cohort.iterdir() if path.is_dir())[0]
    parser = ConfigParser()
    parser.read_config(str(find_bundle("brats_mri_equivariant_cam") / "configs" / "inference.yaml"))
    weights = tmp_path / "model.pt"
    torch.save(parser.get_parsed_content("network_def").state_dict(), weights)
    words = ["--out", tmp_path / "out", "--bundle", "brats_mri_equivariant_cam", "--checkpoint", weights]
    refused = CliRunner().invoke(app, ["explain", str(case), *map(str, words)])
    assert refused.exit_code == 2
    assert "[manifest-missing]" in refused.output
    words.append("--trust-weights")
    result = CliRunner().invoke(app, ["explain", str(case), *map(str, words)])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / case.name
    names = {path.name.removeprefix(f"{case.name}_") for path in folder.iterdir()}
    assert {"pred.nii.gz", "heatmap_WT.nii.gz", "heatmap_t1c_ET.nii.gz", f"{case.name}.png"} <= names
    label = nib.load(folder / f"{case.name}_pred.nii.gz")
    image = nib.load(case / f"{case.name}_t1.nii.gz")
    assert label.shape == image.shape
    assert np.allclose(label.affine, image.affine)
    assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2, 4}
