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

import nibabel as nib
import numpy as np
import pytest

from monai_rrr.data import make_brain_box, tag_extents
from monai_rrr.errors import DataError

SHAPE = (12, 14, 10)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write(path, array, affine=LPS):
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def brain(shape=SHAPE, margin=2):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(margin, n - margin) for n in shape)] = True
    return mask


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {m: (rng.integers(50, 900, SHAPE) * brain()).astype(np.int16) for m in ("t1", "t1c", "t2", "flair")}


@pytest.fixture
def case(tmp_path, arrays):
    paths = {m: write(tmp_path / f"{m}.nii.gz", a) for m, a in arrays.items()}
    return {"case_id": "a", "modalities": paths, "label": str(tmp_path / "there is none.nii.gz")}


def test_native_grid(case, arrays):
    box = make_brain_box(case)
    assert box.image.shape == (4, 10, 12, 8)
    assert box.image.dtype == np.int16
    assert box.source_shape == SHAPE
    assert box.tag_grid == (1.0, 1.0)
    for channel, name in enumerate(("t1", "t1c", "t2", "flair")):
        canonical = arrays[name][::-1, ::-1]
        np.testing.assert_array_equal(box.image[channel], canonical[1:-1, 1:-1, 1:-1])
    np.testing.assert_array_equal(box.brain, brain()[1:-1, 1:-1, 1:-1])
    assert box.present.tolist() == [True] * 4
    assert box.slope.tolist() == [1.0] * 4
    # Voxel 0 of the box is voxel (10, 12, 1) of the file.
    np.testing.assert_allclose(box.affine @ [0, 0, 0, 1], LPS @ [10, 12, 1, 1])


def test_statistics_are_of_the_clipped_nonzero_voxels(case, arrays):
    box = make_brain_box(case)
    for channel, array in enumerate(arrays.values()):
        values = array[array != 0].astype(float)
        clipped = np.clip(values, *np.percentile(values, (0.5, 99.5)))
        assert box.mean[channel] == pytest.approx(clipped.mean(), rel=1e-5)
        assert box.std[channel] == pytest.approx(clipped.std(), rel=1e-5)


def test_absent_modality_is_zero(case):
    del case["modalities"]["t2"]
    box = make_brain_box(case)
    assert box.present.tolist() == [True, True, False, True]
    assert not box.image[2].any()
    assert (box.mean[2], box.std[2]) == (0.0, 1.0)


def test_hole_of_one_modality_holds_its_mean(tmp_path, case, arrays):
    cut = arrays["t1"].copy()
    cut[:, :, 7] = 0
    case["modalities"]["t1"] = write(tmp_path / "cut.nii.gz", cut)
    box = make_brain_box(case)
    hole = box.image[0, ..., 6][box.brain[..., 6]]
    assert len(hole) > 0
    assert (hole == round(float(box.mean[0]))).all()


def test_float_input_keeps_its_precision(tmp_path, case):
    values = (np.random.default_rng(1).uniform(0.1, 2.0, SHAPE) * brain()).astype(np.float32)
    case["modalities"] = {"flair": write(tmp_path / "float.nii.gz", values)}
    box = make_brain_box(case)
    canonical = values[::-1, ::-1][1:-1, 1:-1, 1:-1]
    assert np.abs(box.image[3] * box.slope[3] - canonical).max() <= 2.0 / 32767


def test_scaled_beyond_int16(tmp_path, case):
    values = (brain() * 60000).astype(np.uint16)
    values[5, 5, 5] = 30000
    case["modalities"] = {"t1": write(tmp_path / "u.nii.gz", values)}
    box = make_brain_box(case)
    assert box.image.max() == 32767
    assert float(box.image.max() * box.slope[0]) == pytest.approx(60000)


def test_four_dimensional_file(tmp_path, case, arrays):
    path = write(tmp_path / "all.nii.gz", np.stack([arrays["flair"], arrays["t1"]], axis=-1))
    box = make_brain_box({"case_id": "a", "modalities": {"t1": path, "flair": path}, "volumes": {"flair": 0, "t1": 1}})
    np.testing.assert_array_equal(box.image, make_brain_box(case).image * box.present[:, None, None, None])


def test_pooling_does_not_darken_edges(tmp_path):
    mask = np.zeros((13, 13, 13), dtype=bool)
    mask[2:10, 2:10, 2:10] = True
    path = write(tmp_path / "flat.nii.gz", (mask * 500).astype(np.int16), np.eye(4))
    box = make_brain_box({"case_id": "a", "modalities": {"t1": path}}, spacing=3.0)
    assert box.image.shape == (4, 4, 4, 4)
    np.testing.assert_allclose((box.image[0] * box.slope[0])[box.brain], 500, atol=0.02)
    # The box starts at voxel 1; its voxels hold 1-3, 4-6, 7-9 and 10-12 of the file.
    assert box.brain[0, 1, 1]
    assert not box.brain[3, 1, 1]
    assert not box.brain[0, 0, 0], "8 of 27 voxels"
    np.testing.assert_allclose(box.affine, [[3, 0, 0, 2], [0, 3, 0, 2], [0, 0, 3, 2], [0, 0, 0, 1]])
    assert box.tag_grid == (3.0, 2.0)


def test_pooling_averages(tmp_path):
    values = np.random.default_rng(0).integers(1, 1000, (6, 6, 6)).astype(np.int16)
    path = write(tmp_path / "a.nii.gz", values, np.eye(4))
    box = make_brain_box({"case_id": "a", "modalities": {"t2": path}}, spacing=2.5)
    expected = values.reshape(3, 2, 3, 2, 3, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(box.image[2] * box.slope[2], expected, atol=0.02)


def test_thick_slices_are_pooled_in_plane_only(tmp_path):
    values = np.arange(1, 257, dtype=np.int16).reshape(8, 8, 4)
    path = write(tmp_path / "thick.nii.gz", values, np.diag([1.0, 1.0, 5.0, 1.0]))
    box = make_brain_box({"case_id": "a", "modalities": {"t1": path}}, spacing=2.0)
    assert box.image.shape[1:] == (4, 4, 4)
    np.testing.assert_allclose(np.diag(box.affine), [2, 2, 5, 1])


@pytest.mark.parametrize("spacing", [0.0, -1.0])
def test_bad_spacing(case, spacing):
    with pytest.raises(ValueError, match=r"spacing must be positive \(mm\), got"):
        make_brain_box(case, spacing)


def test_unknown_modality(case):
    case["modalities"]["dwi"] = case["modalities"]["t1"]
    with pytest.raises(DataError, match=r"case a, field modalities: expected some of t1, t1c, t2, flair, got dwi"):
        make_brain_box(case)


def test_no_modality(case):
    with pytest.raises(DataError, match="got none"):
        make_brain_box({**case, "modalities": {}})


def test_shape_mismatch(tmp_path, case, arrays):
    case["modalities"]["t2"] = write(tmp_path / "s.nii.gz", arrays["t2"][:-1])
    with pytest.raises(
        DataError, match=r"shape-mismatch.*field t2.*expected the shape \(12, 14, 10\) of t1, got \(11,"
    ):
        make_brain_box(case)


def test_affine_mismatch(tmp_path, case, arrays):
    moved = LPS.copy()
    moved[0, 3] = 3.0
    case["modalities"]["t2"] = write(tmp_path / "s.nii.gz", arrays["t2"], moved)
    with pytest.raises(
        DataError, match=r"affine-mismatch.*field t2.*expected the position of t1 within 0.1 mm, got 3 mm"
    ):
        make_brain_box(case)


@pytest.mark.parametrize("value", [0, 7])
def test_constant_modality(tmp_path, case, value):
    case["modalities"]["t2"] = write(tmp_path / "s.nii.gz", np.full(SHAPE, value, np.int16))
    with pytest.raises(DataError, match=rf"constant-modality.*field t2.*got {value} in all voxels"):
        make_brain_box(case)


def test_damaged_file_is_named(tmp_path, case):
    values = np.ones(SHAPE, np.float32)
    values[0, 0, 0] = np.nan
    case["modalities"]["t2"] = write(tmp_path / "s.nii.gz", values)
    with pytest.raises(DataError, match=r"non-finite.*case a, field t2, file .*s.nii.gz"):
        make_brain_box(case)


def test_tag_extents_names_missing_region():
    with pytest.raises(ValueError, match="tags must name the regions WT, TC, ET, but TC, ET is missing"):
        tag_extents({"WT": None})
