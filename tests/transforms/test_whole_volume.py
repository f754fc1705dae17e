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

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.ndimage import center_of_mass

from monai_rrr.data import load_datalist, make_brain_box
from monai_rrr.transforms import WholeVolumed, to_source_grid

SHAPE = (13, 16, 18)
LANDMARK = (8, 5, 11)
ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.15, 0.1) @ np.diag([1.0, 1.2, 1.1]), [-20, 7, 3])


def canonical_case(affine=None):
    """A brain with one bright ellipsoid, in canonical orientation, and the world position of the ellipsoid."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")).astype(float)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[1:-2, 2:-1, 2:-2] = True
    distance = ((index - np.array(LANDMARK)[:, None, None, None]) / np.array([3, 2, 2.5])[:, None, None, None]) ** 2
    texture = np.random.default_rng(0).integers(90, 110, SHAPE)
    array = np.where(distance.sum(axis=0) <= 1, 900, texture) * brain
    affine = nib.affines.from_matvec(np.diag([1.0, 1.2, 1.1]), [-20, 7, 3]) if affine is None else affine
    return array.astype(np.int16), affine


def write(tmp_path, orientation, affine=None):
    array, affine = canonical_case(affine)
    turned = apply_orientation(array, orientation)
    image = nib.Nifti1Image(np.ascontiguousarray(turned), affine @ inv_ornt_aff(orientation, SHAPE))
    nib.save(image, tmp_path / "t1.nii")
    position = affine @ [*LANDMARK, 1]
    return image, {"case_id": "a", "modalities": {"t1": str(tmp_path / "t1.nii")}}, position


def box_dict(case, spacing, tags=((10, 12), (11, 11), (np.nan, np.nan))):
    return {**make_brain_box(case, spacing).as_dict(), "tags": np.array(tags)}


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
@pytest.mark.parametrize("affine", [None, OBLIQUE], ids=["straight", "oblique"])
def test_round_trip_is_exact_on_the_native_grid(tmp_path, orientation, affine):
    image, case, _ = write(tmp_path, orientation, affine)
    data = box_dict(case, None)
    out = WholeVolumed((4, 4, 4), spacing=(1.0, 1.2, 1.1), multiple=4)(data)
    assert [n % 4 for n in out["image"].shape[1:]] == [0, 0, 0]
    assert out["slice_label"][0].sum() == 3
    bright = out["image"][0].amax(dim=(0, 1))
    assert float(bright[out["slice_label"][1].bool()]) == float(bright.max())
    back = to_source_grid(out["image"], out["geometry"])
    array = np.asarray(image.dataobj)
    expected = (array - data["mean"][0]) / data["std"][0] * (array != 0)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back[0], np.clip(expected, -10, 10), atol=1e-5)
    mask = to_source_grid(out["brain"], out["geometry"], mode="nearest")
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask[0], array != 0)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
@pytest.mark.parametrize("affine", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize(("cached", "spacing"), [(None, 1.7), (2.4, 2.4), (2.4, 3.1)])
def test_position_in_mm_is_kept_within_half_a_voxel(tmp_path, orientation, affine, cached, spacing):
    image, case, position = write(tmp_path, orientation, affine)
    out = WholeVolumed((10, 12, 8), spacing=spacing)(box_dict(case, cached))
    for grid, volume in (
        (out["geometry"]["affine"], out["image"][0].numpy()),
        (image.affine, to_source_grid(out["image"], out["geometry"])[0]),
    ):
        center = grid @ [*center_of_mass(np.clip(volume - 1.5, 0, None)), 1]
        assert np.linalg.norm(center[:3] - position[:3]) < 0.5 * spacing


def test_size(tmp_path):
    _, case, _ = write(tmp_path, ORIENTATIONS[0])
    data = box_dict(case, None)
    assert data["brain"].shape == (12, 15, 16)
    assert WholeVolumed((24, 20, 17), (1.0, 1.2, 1.1))(data)["image"].shape == (4, 24, 20, 17)
    assert WholeVolumed((4, 4, 4), (1.0, 1.2, 1.1), multiple=(8, 8, 1))(data)["brain"].shape == (1, 16, 16, 16)
    assert WholeVolumed((4, 4, 4), (0.5, 1.2, 1.1))(data)["brain"].shape == (1, 24, 15, 16)


def test_batch(tmp_path):
    _, case, _ = write(tmp_path, ORIENTATIONS[0])
    data = box_dict(case, None)
    del data["tags"]
    (batch,) = DataLoader(Dataset([data], WholeVolumed((16, 16, 16), (1.0, 1.2, 1.1))), batch_size=1)
    assert batch["image"].shape == (1, 4, 16, 16, 16)
    assert batch["class_label"].isnan().all()
    geometry = {name: value[0] for name, value in batch["geometry"].items()}
    assert to_source_grid(batch["image"][0], geometry).shape == (4, *SHAPE)


def test_anti_aliasing_is_asked_for(tmp_path):
    _, case, _ = write(tmp_path, ORIENTATIONS[0])
    with pytest.raises(ValueError, match="build the cache with the slab's spacing"):
        WholeVolumed((4, 4, 4), 3.0)(box_dict(case, None))


def test_same_values_for_tensor_on_any_strides(tmp_path):
    _, case, _ = write(tmp_path, ORIENTATIONS[0])
    out = WholeVolumed((16, 16, 16), (1.0, 1.2, 1.1))(box_dict(case, None))
    turned = out["image"].permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    assert not turned.is_contiguous()
    first, second = (to_source_grid(v, out["geometry"]) for v in (turned.requires_grad_(), out["image"]))
    np.testing.assert_array_equal(first, second)
    assert isinstance(out["image"], torch.Tensor)


@pytest.mark.slow
def test_real_case_comes_back_in_place(brats_folder):
    case = load_datalist(brats_folder, with_labels=False)[0]
    name, path = next(iter(case["modalities"].items()))
    array = np.asarray(nib.load(path).dataobj)
    for spacing, least in ((None, 0.9999), (3.0, 0.9)):
        data = make_brain_box({**case, "modalities": {name: path}}, spacing).as_dict()
        out = WholeVolumed((32, 32, 16), spacing or np.linalg.norm(data["affine"][:3, :3], axis=0), multiple=8)(data)
        channel = int(np.flatnonzero(data["present"])[0])
        back = to_source_grid(out["image"][channel : channel + 1], out["geometry"])[0]
        assert np.corrcoef(back[array != 0], array[array != 0])[0, 1] > least
        outside = to_source_grid(out["brain"], out["geometry"], mode="nearest")[0] & (array == 0)
        assert outside.sum() < (0.05 if spacing else 0.0001) * (array != 0).sum()
