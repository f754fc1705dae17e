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
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import SegResNet
from monai.transforms import Compose, Lambda
from torch import Tensor, nn

from monai_rrr.attribution import positive_score
from monai_rrr.errors import DataError
from monai_rrr.report.explain import explain_network, mri_preprocessing, read_image

LPS = np.array([[-1.0, 0, 0, 20], [0, -1.0, 0, 30], [0, 0, 2.0, -10], [0, 0, 0, 1]])


class Bright(nn.Module):
    """One convolution that keeps what is bright: the heatmap of class 1 is the bright spot itself."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv3d(1, 1, 1)
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.features.weight.fill_(1)
            self.features.bias.zero_()
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).flatten(2).mean(2))


def spot_image(affine: np.ndarray[Any, Any] = LPS) -> MetaTensor:
    array = torch.zeros(1, 24, 20, 12)
    array[0, 4:20, 3:17, 2:10] = 1 + 0.1 * torch.rand(16, 14, 8)
    array[0, 14:18, 5:8, 6:9] = 5
    return MetaTensor(array, affine=torch.from_numpy(affine))


AXES = {
    "LPS": LPS,
    "RAS": np.diag([1.0, 1.0, 2.0, 1.0]),
    "sagittal": np.array([[0, 0, 1.5, -5], [-1.0, 0, 0, 7], [0, 2.0, 0, 3], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("spacing", [None, 2.0])
@pytest.mark.parametrize("axes", AXES)
def test_heatmap_lies_where_the_evidence_is(axes: str, spacing: float | None) -> None:
    image = spot_image(AXES[axes])
    result = explain_network(Bright(), image, "features", 1, preprocessing=mri_preprocessing(spacing, divisible=4))
    assert result.heatmap.shape == (1, 24, 20, 12)
    assert result.heatmap.dtype == np.float32
    np.testing.assert_array_equal(result.affine, AXES[axes])
    assert result.class_idx == (1,)
    spot = image.numpy()[0] == 5
    inside, outside = result.heatmap[0][spot], result.heatmap[0][~spot]
    assert inside.mean() > 4 * outside.mean()
    assert result.heatmap[0][image.numpy()[0] == 0].max() <= 0.5
    peak = np.unravel_index(result.heatmap[0].argmax(), spot.shape)
    assert spot[peak]
    if spacing is None:
        assert inside.min() == pytest.approx(1)
        assert result.heatmap[0, :2].max() == 0


@pytest.mark.parametrize("size", [(24, 24, 24), (10, 10, 6)])
def test_network_of_one_size(size: tuple[int, int, int]) -> None:
    seen = mri_preprocessing(size=size)(spot_image())
    assert seen.shape[1:] == size
    result = explain_network(Bright(), spot_image(), "features", 1, preprocessing=mri_preprocessing(size=size))
    assert result.heatmap.shape == (1, 24, 20, 12)
    spot = spot_image().numpy()[0] == 5
    if size[0] == 24:
        assert spot[np.unravel_index(result.heatmap[0].argmax(), spot.shape)]
    else:
        assert (result.heatmap[0] != 0).sum() <= np.prod(size)


def test_predicted_class_and_logits() -> None:
    result = explain_network(Bright().eval(), spot_image(), "features", preprocessing=mri_preprocessing(divisible=1))
    assert result.class_idx == (int(result.logits.argmax()),)
    assert result.logits.shape == (2,)


def test_segmentation_network_and_two_classes() -> None:
    network = SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)).eval()
    result = explain_network(
        network, spot_image(), "down_layers.1", [0, 2], score=positive_score, relu=False, normalize=None
    )
    assert result.heatmap.shape == (2, 24, 20, 12)
    assert np.isfinite(result.heatmap).all()
    assert result.logits.shape == (3, 32, 32, 32)


@pytest.mark.parametrize("axes", AXES)
def test_input_is_not_changed(axes: str) -> None:
    image = spot_image(AXES[axes])
    before = image.clone()
    explain_network(Bright(), image, "features", 1)
    assert torch.equal(image, before)
    assert torch.equal(image.affine, before.affine)
    assert image.applied_operations == []


def test_preprocessing_that_can_not_be_undone() -> None:
    shrink = Compose([Lambda(func=lambda image: image[:, ::2])])
    with pytest.raises(ValueError, match=r"can't be undone: expected shape \(24, 20, 12\), got \(12, 20, 12\)"):
        explain_network(Bright(), spot_image(), "features", 1, preprocessing=shrink)


def test_empty_image() -> None:
    with pytest.raises(DataError, match="image-empty"):
        explain_network(Bright(), MetaTensor(torch.zeros(1, 4, 4, 4)), "features", 1)


class TestReadImage:
    @pytest.fixture
    def case(self, tmp_path: Path) -> dict[str, Any]:
        files = {}
        for number, name in enumerate(("t1", "flair")):
            array = np.full((4, 5, 6), number + 1, np.int16)
            files[name] = str(tmp_path / f"{name}.nii.gz")
            nib.save(nib.Nifti1Image(array, LPS), files[name])
        return {"case_id": "A", "modalities": files}

    def test_channels_in_order(self, case: dict[str, Any]) -> None:
        image = read_image(case, ["flair", "t1"])
        assert image.shape == (2, 4, 5, 6)
        assert image.dtype == torch.float32
        assert image[:, 0, 0, 0].tolist() == [2, 1]
        np.testing.assert_allclose(image.affine.numpy(), LPS)

    def test_volume_of_a_4d_file(self, case: dict[str, Any], tmp_path: Path) -> None:
        array = np.stack([np.full((4, 5, 6), n, np.int16) for n in (7, 8)], axis=-1)
        nib.save(nib.Nifti1Image(array, LPS), tmp_path / "four.nii.gz")
        four = {"case_id": "B", "modalities": dict.fromkeys(("t1", "t2"), str(tmp_path / "four.nii.gz"))}
        image = read_image({**four, "volumes": {"t1": 1, "t2": 0}}, ["t1", "t2"])
        assert image[:, 0, 0, 0].tolist() == [8, 7]

    def test_missing_modality(self, case: dict[str, Any]) -> None:
        with pytest.raises(DataError, match=r"case A, field t1c: expected \['t1', 't1c'\], got \['flair', 't1'\]"):
            read_image(case, ["t1", "t1c"])

    @pytest.mark.parametrize(
        ("shape", "shift", "message"),
        [((4, 5, 7), 0.0, r"expected shape \(4, 5, 6\) as t1, got \(4, 5, 7\)"), ((4, 5, 6), 3.0, "got 3 mm apart")],
    )
    def test_other_grid(
        self, case: dict[str, Any], tmp_path: Path, shape: tuple[int, ...], shift: float, message: str
    ) -> None:
        affine = LPS.copy()
        affine[0, 3] += shift
        nib.save(nib.Nifti1Image(np.ones(shape, np.int16), affine), tmp_path / "flair.nii.gz")
        with pytest.raises(DataError, match=message):
            read_image(case, ["t1", "flair"])
