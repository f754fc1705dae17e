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

"""Geometry of what is written: 48 orientations, straight and oblique, through inference and through ``explain``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import DataLoader, Dataset
from monai.engines import PrepareBatchExtraInput, SupervisedEvaluator
from monai.transforms import Compose
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from torch import Tensor, nn

from monai_rrr.data import BrainBoxCache, LoadBrainBoxd
from monai_rrr.inferers import SlabHeatmapInferer
from monai_rrr.report import explain_network, explanation_files, mri_preprocessing, read_image, write_explanation
from monai_rrr.transforms import HeatmapToLabeld, HeatmapToSourced, SaveHeatmapsd, WholeVolumed

SHAPE, VOXEL = (24, 22, 12), (1.0, 1.2, 2.5)
LANDMARK = (15.0, 8.0, 7.0)  # voxel of the file in RAS order
RADIUS = 5.0  # mm
CODES = ["".join(one) for order in itertools.permutations(("LR", "PA", "IS")) for one in itertools.product(*order)]
ANGLES = (0.0, 0.3)
NAMES = [f"{codes}_{angle}" for codes in CODES for angle in ANGLES]
SOME = [f"{CODES[8 * order + (3 * order + 1) % 8]}_{angle}" for order in range(6) for angle in ANGLES]
"""Each order of the axes once, with other directions, for every day; all 96 run with the slow tests."""


def base_affine(angle: float) -> np.ndarray:
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
    rotation = nib.quaternions.angle_axis2mat(angle, axis)
    return nib.affines.from_matvec(rotation @ np.diag(VOXEL), [-31.0, 12.5, 47.25])


def sphere_image(affine: np.ndarray) -> np.ndarray:
    """A brain of 100 with a sphere of 1000 around the landmark, 0 outside."""
    index = np.stack(np.indices(SHAPE), -1)
    world = nib.affines.apply_affine(affine, index)
    distance = np.linalg.norm(world - nib.affines.apply_affine(affine, LANDMARK), axis=-1)
    image = np.zeros(SHAPE, np.int16)
    image[2:-2, 2:-2, 1:-1] = 100
    image[distance < RADIUS] = 1000
    return image


def write_image(path: Path, image: np.ndarray, affine: np.ndarray, codes: str, forms: tuple[int, int] = (1, 1)) -> None:
    """Write a RAS image with its axes in another order, by (sform code, qform code)."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    turned = affine @ inv_ornt_aff(turn, image.shape)
    nifti = nib.Nifti1Image(apply_orientation(image, turn), turned)
    nifti.set_sform(turned if forms[0] else None, code=forms[0])
    nifti.set_qform(turned if forms[1] else None, code=forms[1])
    nifti.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nifti, path)


class Oracle(nn.Module):
    """Sees what is bright: its class maps are the intensity, steep around the middle between sphere and brain."""

    def __init__(self, middle: float, steepness: float = 2.0) -> None:
        super().__init__()
        self.class_maps, self.reliability = nn.Identity(), nn.Identity()
        self.middle, self.steepness = middle, steepness
        self.register_buffer("operating_point", torch.tensor([[0.5, 0.0]]).repeat(3, 1))

    def forward(self, image: Tensor, present: Tensor) -> Tensor:
        self.reliability(torch.full((4, 3), 0.25))
        maps = self.steepness * (image - self.middle)
        return self.class_maps(maps[:, :, None].expand(-1, -1, 3, -1, -1, -1)).flatten(3).amax(3)


def oracle(image: np.ndarray, steepness: float = 2.0) -> Oracle:
    brain = image[image != 0].astype(float)
    middle = (brain.min() + brain.max()) / 2
    return Oracle((middle - brain.mean()) / brain.std(), steepness)


def infer(cases: list[dict[str, Any]], network: nn.Module, spacing: float, folder: Path) -> None:
    """What the bundle's inference.yaml is wired as."""
    cache = BrainBoxCache(folder / "cache", spacing=spacing)
    data = Dataset(cases, Compose([LoadBrainBoxd(cache), WholeVolumed((4, 4, 4), spacing=spacing)]))
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(data, batch_size=1),
        network=network,
        inferer=SlabHeatmapInferer(depth=6, per_modality=True),
        prepare_batch=PrepareBatchExtraInput({"present": "present", "case_id": "case_id"}),
        postprocessing=Compose(
            [
                HeatmapToSourced("pred"),
                HeatmapToLabeld(network, "brats2018"),
                SaveHeatmapsd(str(folder / "cases")),
            ]
        ),
    ).run()


class Bright(nn.Module):
    """One convolution that keeps what is bright: the heatmap of class 1 is the bright sphere."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv3d(1, 1, 1), nn.Linear(1, 2)
        with torch.no_grad():
            self.features.weight.fill_(1)
            self.features.bias.zero_()
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).flatten(2).mean(2))


@dataclass(frozen=True)
class Written:
    """Inputs and outputs of every case by name."""

    sources: Mapping[str, Path]
    inference: Path
    explained: Path

    def files(self, name: str) -> list[Path]:
        folders = (self.inference / name, self.explained / name)
        return [path for folder in folders for path in sorted(folder.glob("*.nii.gz"))]


@pytest.fixture(scope="module", params=[SOME, pytest.param(NAMES, marks=pytest.mark.slow)], ids=["some", "all"])
def written(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Written]:
    """Return cases after both ways to explain them."""
    root = tmp_path_factory.mktemp("orientations")
    sources, cases = {}, []
    for name in request.param:
        codes, angle = name.split("_")
        affine = base_affine(float(angle))
        sources[name] = root / "data" / f"{name}.nii.gz"
        write_image(sources[name], sphere_image(affine), affine, codes)
        cases.append({"case_id": name, "modalities": {"flair": str(sources[name])}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(explanation_files, "render", lambda *_: b"no picture")
        infer(cases, oracle(sphere_image(base_affine(0.0))), 2.0, root)
        for case in cases:
            image = read_image(case, ["flair"])
            found = explain_network(Bright(), image, "features", 1, preprocessing=mri_preprocessing(divisible=4))
            write_explanation(found, image, case["case_id"], root / "explained", ["flair"])
        yield Written(sources, root / "cases", root / "explained")


def test_g1_orientation_nibabel(written: Written) -> None:
    assert len(written.sources) in (12, 96)
    for name, source in written.sources.items():
        like = nib.load(source)
        assert "".join(nib.aff2axcodes(like.affine)) == name.split("_")[0]
        files = written.files(name)
        assert len(files) == 1 + 3 + 3 + 2, "label map, fused and FLAIR heatmaps; heatmap and mask of explain"
        for path in files:
            image = nib.load(path)
            assert image.shape == like.shape, path
            np.testing.assert_array_equal(image.affine, like.affine, err_msg=str(path))
            np.testing.assert_array_equal(image.header.get_qform(), like.header.get_qform(), err_msg=str(path))


def test_g1_orientation_simpleitk(written: Written) -> None:
    for name, source in written.sources.items():
        like = sitk.ReadImage(str(source))
        for path in written.files(name):
            image = sitk.ReadImage(str(path))
            assert image.GetSize() == like.GetSize()
            assert image.GetOrigin() == like.GetOrigin()
            assert image.GetSpacing() == like.GetSpacing()
            assert image.GetDirection() == like.GetDirection()


@pytest.mark.parametrize("kind", ["inference", "explain"])
def test_g2_landmark(written: Written, kind: str) -> None:
    """Equal headers do not prove equal content: the sphere must be where it is in the world, by both readers."""
    for name in written.sources:
        landmark = nib.affines.apply_affine(base_affine(float(name.split("_")[1])), LANDMARK)
        folder, ending = {
            "inference": (written.inference, "pred"),
            "explain": (written.explained, "mask_class1"),
        }[kind]
        path = folder / name / f"{name}_{ending}.nii.gz"
        image = nib.load(path)
        voxels = np.argwhere(np.asarray(image.dataobj))
        assert 90 < len(voxels) < 300, f"{name}: a sphere of {RADIUS} mm has some 175 voxels"
        centroid = voxels.mean(0)
        expected = nib.affines.apply_affine(np.linalg.inv(image.affine), landmark)
        assert np.abs(centroid - expected).max() < 0.5, f"{name}: {centroid} and {expected}"
        read = sitk.ReadImage(str(path))
        point = np.array(read.TransformContinuousIndexToPhysicalPoint(centroid.tolist())) * (-1, -1, 1)
        assert np.linalg.norm(point - nib.affines.apply_affine(image.affine, centroid)) < 1e-3


@pytest.mark.parametrize("forms", [(1, 0), (0, 1), (2, 1), (4, 0), (0, 3)])
def test_g3_header(tmp_path: Path, forms: tuple[int, int]) -> None:
    affine = base_affine(0.3)
    image = sphere_image(affine)
    source = tmp_path / "flair.nii.gz"
    write_image(source, image, affine, "PSL", forms)
    case = {"case_id": "a", "modalities": {"flair": str(source)}}
    infer([case], oracle(image), 2.0, tmp_path)
    read = read_image(case, ["flair"])
    found = explain_network(Bright(), read, "features", 1, preprocessing=mri_preprocessing(divisible=4))
    write_explanation(found, read, "a", tmp_path / "explained", ["flair"])
    like = nib.load(source)
    files = [*(tmp_path / "cases" / "a").glob("*.nii.gz"), *(tmp_path / "explained" / "a").glob("*.nii.gz")]
    assert len(files) == 9
    for path in files:
        header = nib.load(path).header
        for field in ("sform_code", "qform_code", "xyzt_units", "pixdim"):
            np.testing.assert_array_equal(header[field], like.header[field], err_msg=f"{field} of {path.name}")
        np.testing.assert_array_equal(nib.load(path).affine, like.affine)
        mask = path.name.endswith(("pred.nii.gz", "mask_class1.nii.gz"))
        assert header.get_data_dtype() == (np.uint8 if mask else np.float32)
        values = set(np.unique(np.asarray(nib.load(path).dataobj)).tolist())
        assert not mask or values == ({0, 4} if path.name.endswith("pred.nii.gz") else {0, 1})


@pytest.mark.parametrize("way", ["inference", "explain"])
def test_g4_resampling(tmp_path: Path, way: str) -> None:
    """A smooth ellipsoid in slices of 6 mm, seen at 1 mm, comes back."""
    shape = (34, 30, 12)
    grid = np.stack(np.indices(shape), -1) * (1.0, 1.0, 6.0) - (17.0, 14.0, 34.0)
    radius = np.linalg.norm(grid / (11.0, 9.0, 20.0), axis=-1)
    image = np.zeros(shape, np.int16)
    image[2:-2, 2:-2, 1:-1] = 100
    image += (900 / (1 + np.exp(8 * (radius - 1))) * (image > 0)).astype(np.int16)
    write_image(tmp_path / "flair.nii.gz", image, np.diag([1.0, 1.0, 6.0, 1.0]), "RAS")
    case = {"case_id": "a", "modalities": {"flair": str(tmp_path / "flair.nii.gz")}}
    if way == "inference":
        infer([case], oracle(image, steepness=4.0), 1.0, tmp_path)
        found = np.asarray(nib.load(tmp_path / "cases" / "a" / "a_pred.nii.gz").dataobj) > 0
        truth = image > (int(image.max()) + 100) / 2
    else:
        read = read_image(case, ["flair"])
        prepare = mri_preprocessing(1.0, divisible=4)
        result = explain_network(Bright(), read, "features", 1, preprocessing=prepare)
        brain = image[image != 0].astype(float)
        found = result.heatmap[0] > 0.5
        truth = image > (brain.mean() + image.max()) / 2
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert truth.sum() > 500
    assert dice >= 0.97
