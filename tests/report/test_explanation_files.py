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

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from monai_rrr.report import Explanation, write_explanation

AFFINE = np.array([[0.0, -2.0, 0.0, 30.0], [-1.0, 0.0, 0.0, 20.0], [0.0, 0.0, 3.0, -10.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture
def explanation() -> Explanation:
    heatmap = np.zeros((2, 12, 10, 8), np.float32)
    heatmap[0, 3:6, 2:5, 5] = 1.0
    heatmap[1, 8, 8, 1] = 0.8
    return Explanation(heatmap, AFFINE, (0, 3), np.zeros(4, np.float32))


def test_files_have_values_and_geometry(explanation: Explanation, tmp_path: Path) -> None:
    files = write_explanation(explanation, torch.ones(2, 12, 10, 8), "a/b", tmp_path, ("t1", "flair"))
    names = ["heatmap_class0.nii.gz", "mask_class0.nii.gz", "heatmap_class3.nii.gz", "mask_class3.nii.gz"]
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        *(f"a%2Fb/a%2Fb_{name}" for name in names),
        "a%2Fb/a%2Fb.png",
        "a%2Fb/a%2Fb_provenance.json",
    ]
    heatmap, mask = nib.load(files[0]), nib.load(files[1])
    assert (heatmap.get_data_dtype(), mask.get_data_dtype()) == (np.float32, np.uint8)
    np.testing.assert_array_equal(np.asarray(heatmap.dataobj), explanation.heatmap[0])
    np.testing.assert_array_equal(np.asarray(mask.dataobj), explanation.heatmap[0] > 0)
    np.testing.assert_allclose(heatmap.affine, AFFINE)
    seen = sitk.ReadImage(str(files[0]))
    np.testing.assert_allclose(seen.GetSpacing(), (1.0, 2.0, 3.0), rtol=1e-6)
    # LPS: the first two coordinates have the other sign
    np.testing.assert_allclose(seen.TransformIndexToPhysicalPoint((3, 2, 5)), (-26.0, -17.0, 5.0), atol=1e-5)


def test_picture_has_one_row_per_class(explanation: Explanation, tmp_path: Path) -> None:
    path = write_explanation(explanation, torch.ones(2, 12, 10, 8), "a", tmp_path, ("t1", "flair"))[-2]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.height > picture.width


def test_flat_heatmap_gives_an_empty_mask(tmp_path: Path) -> None:
    flat = Explanation(np.zeros((1, 6, 6, 6), np.float32), np.eye(4), (1,), np.zeros(2, np.float32))
    files = write_explanation(flat, torch.ones(1, 6, 6, 6), "a", tmp_path, ("t1",))
    assert not np.asarray(nib.load(files[1]).dataobj).any()
