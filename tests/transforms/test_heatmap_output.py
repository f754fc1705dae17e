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

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from torch import nn

from monai_rrr.data import load_datalist, make_brain_box
from monai_rrr.errors import InferenceError
from monai_rrr.metrics.threshold import apply_threshold
from monai_rrr.transforms import HeatmapToLabeld, HeatmapToSourced, SaveHeatmapsd, WholeVolumed

SHAPE = (12, 10, 9)
STRAIGHT = np.diag([2.0, 1.5, 3.0, 1.0])
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([2.0, 1.5, 3.0]), [5, -7, 11])
GEOMETRIES = {"RAS": ("RAS", STRAIGHT), "LPS": ("LPS", STRAIGHT), "oblique": ("RAS", OBLIQUE), "SAL": ("SAL", OBLIQUE)}


class Net(nn.Module):
    def __init__(self, points=((0.5, 0.0),) * 3):
        super().__init__()
        self.register_buffer("operating_point", torch.tensor(points))


def write_case(folder, codes, affine, name="t1"):
    """One file in the given orientation; its canonical array is returned."""
    rng = np.random.default_rng(0)
    array = np.zeros(SHAPE, np.int16)
    array[1:-1, 1:-2, 1:-1] = rng.integers(100, 900, (10, 7, 7))
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    image = nib.Nifti1Image(apply_orientation(array, turn), affine @ inv_ornt_aff(turn, SHAPE))
    path = folder / f"{name}.nii.gz"
    nib.save(image, path)
    return path


def outputs(tmp_path, codes, affine, case_id="case-1", per_modality=True):
    source = write_case(tmp_path, codes, affine)
    case = {"case_id": case_id, "modalities": {"t1": str(source)}}
    box = {**make_brain_box(case, None).as_dict(), "case_id": case_id}
    data = WholeVolumed((4, 4, 4), spacing=np.linalg.norm(affine[:3, :3], axis=0).tolist())(box)
    heatmap = torch.rand(5, 3, *data["image"].shape[1:]) * data["brain"]
    heatmap[2:] = 0  # only t1 is there
    data["pred"] = heatmap if per_modality else heatmap[0]
    steps = [
        HeatmapToSourced("pred"),
        HeatmapToLabeld(Net(), "brats2018"),
        SaveHeatmapsd(str(tmp_path / "out")),
    ]
    return source, data, Compose(steps)(data)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_files_have_the_geometry_of_the_input(tmp_path, name):
    source, before, result = outputs(tmp_path, *GEOMETRIES[name])
    image = nib.load(source)
    assert result["pred"].shape == (5, 3, *image.shape)
    np.testing.assert_allclose(result["pred"].affine, image.affine)
    folder = tmp_path / "out" / "case-1"
    names = {f"case-1_{stem}.nii.gz" for stem in ("pred", *(f"heatmap_{r}" for r in ("WT", "TC", "ET")))}
    names |= {f"case-1_heatmap_t1_{r}.nii.gz" for r in ("WT", "TC", "ET")}
    written = {path.name for path in folder.iterdir()}
    assert written == names | {"case-1_provenance.json"}, "absent modalities are not written"
    truth = SimpleITK.ReadImage(str(source))
    for path in map(folder.joinpath, sorted(names)):
        written, other = nib.load(path), SimpleITK.ReadImage(str(path))
        assert written.shape == image.shape
        np.testing.assert_allclose(written.affine, image.affine, atol=1e-4)
        assert other.GetSize() == truth.GetSize()
        np.testing.assert_allclose(other.GetOrigin(), truth.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(other.GetSpacing(), truth.GetSpacing(), atol=1e-4)
        np.testing.assert_allclose(other.GetDirection(), truth.GetDirection(), atol=1e-4)
        assert written.get_data_dtype() == (np.uint8 if path.name.endswith("_pred.nii.gz") else np.float32)
    heatmap = np.asarray(nib.load(folder / "case-1_heatmap_t1_TC.nii.gz").dataobj)
    np.testing.assert_allclose(heatmap, result["pred"][1, 1], atol=1e-6)
    assert 0 <= heatmap.min() <= heatmap.max() <= 1

    # every voxel of the brain has the value of the voxel of the slab at the same place in the world
    brain = np.argwhere(np.asarray(image.dataobj) > 0)
    to_slab = np.linalg.inv(before["geometry"]["affine"]) @ image.affine
    index = np.rint(nib.affines.apply_affine(to_slab, brain)).astype(int)
    expected = before["pred"][1, 1][tuple(index.T)]
    np.testing.assert_allclose(heatmap[tuple(brain.T)], expected, atol=1e-4)


def test_relevance_and_scores_are_written_beside_them(tmp_path):
    source, before, _ = outputs(tmp_path, *GEOMETRIES["SAL"])
    relevance = (torch.rand(4, 3, *before["image"].shape[1:]) - 0.5) * 8
    relevance[1:] = 0  # only t1 is there
    data = {**before, "pred": before["pred"][0], "relevance": relevance, "class_score": torch.tensor([0.9, 0.25, 0.0])}
    steps = [HeatmapToSourced("pred"), HeatmapToSourced(["relevance", "other"], clamp=False, allow_missing_keys=True)]
    result = Compose([*steps, SaveHeatmapsd(str(tmp_path / "more"))])(data)
    folder = tmp_path / "more" / "case-1"
    names = {f"case-1_{kind}_{r}.nii.gz" for kind in ("heatmap", "relevance_t1") for r in ("WT", "TC", "ET")}
    assert {p.name for p in folder.iterdir()} == names | {"case-1_class_scores.json", "case-1_provenance.json"}
    assert json.loads((folder / "case-1_class_scores.json").read_text()) == {"WT": 0.9, "TC": 0.25, "ET": 0.0}
    assert set(json.loads((folder / "case-1_provenance.json").read_text())["outputs"]) == {
        *names,
        "case-1_class_scores.json",
    }
    image = nib.load(folder / "case-1_relevance_t1_TC.nii.gz")
    np.testing.assert_allclose(image.affine, nib.load(source).affine, atol=1e-4)
    assert image.get_fdata().min() < -1
    assert image.get_fdata().max() > 1
    np.testing.assert_allclose(image.get_fdata(), result["relevance"][0, 1], atol=1e-6)


@pytest.mark.parametrize("name", ["RAS", "SAL"])
def test_label_map_is_what_the_metrics_score(tmp_path, name):
    """Same masks as ``apply_threshold`` in canonical orientation, nested, area per slice included."""
    source, _, result = outputs(tmp_path, *GEOMETRIES[name], per_modality=False)
    network = Net(((0.3, 60.0), (0.5, 30.0), (0.6, 25.0)))
    result = HeatmapToLabeld(network, "brats2018")(result)
    turn = nib.orientations.io_orientation(nib.load(source).affine)
    label = apply_orientation(np.asarray(result["label_map"][0]), turn)
    heatmap = [apply_orientation(np.asarray(one), turn) for one in result["pred"]]
    spacing = nib.affines.voxel_sizes(nib.as_closest_canonical(nib.load(source)).affine)
    masks = np.stack(
        [
            apply_threshold(h, t, area, spacing)
            for h, (t, area) in zip(heatmap, network.operating_point.tolist(), strict=True)
        ]
    )
    masks = np.logical_and.accumulate(masks)
    assert masks.any((1, 2, 3)).all()
    assert (masks.any((1, 2)).sum(1) < masks.shape[3]).any(), "some slices are cleared"
    for region, values in enumerate([(1, 2, 4), (1, 4), (4,)]):
        np.testing.assert_array_equal(np.isin(label, values), masks[region])


@pytest.mark.parametrize(("convention", "enhancing"), [("brats2018", 4), ("brats2023", 3)])
def test_label_values_follow_the_convention(convention, enhancing):
    heatmap = MetaTensor(torch.ones(3, 2, 2, 2), affine=torch.eye(4))
    found = HeatmapToLabeld(Net(), convention)({"pred": heatmap})["label_map"]
    assert found.dtype == torch.uint8
    assert found.shape == (1, 2, 2, 2)
    assert set(found.unique().tolist()) == {enhancing}


def test_case_ids_never_collide_or_leave_the_folder(tmp_path):
    """SaveImage takes what follows the last dot for an extension: Patient.001 and Patient.002 would be one file."""
    heatmap = MetaTensor(torch.rand(3, 2, 2, 2), affine=torch.eye(4))
    geometry = {"affine": np.eye(4), "source_affine": np.eye(4), "source_shape": (2, 2, 2)}
    for case_id in ("Patient.001", "Patient.002", "../x"):
        data = HeatmapToSourced("pred")({"pred": torch.as_tensor(heatmap), "geometry": geometry, "case_id": case_id})
        SaveHeatmapsd(str(tmp_path / "out"))(data)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["%2E.%2Fx", "Patient.001", "Patient.002"]
    assert (tmp_path / "out" / "Patient.001" / "Patient.001_heatmap_WT.nii.gz").is_file()


def test_no_mask_is_made_of_values_that_are_not_finite():
    heatmap = MetaTensor(torch.full((3, 2, 2, 2), torch.nan), affine=torch.eye(4))
    with pytest.raises(
        InferenceError, match=r"\[heatmap-not-finite\] case a, field WT: .* got 8 NaN .* no mask is made"
    ):
        HeatmapToLabeld(Net(), "brats2018")({"pred": heatmap, "case_id": "a"})


def test_a_case_of_the_loader_comes_back(phantom_cohort, tmp_path):
    case = load_datalist(phantom_cohort, with_labels=False)[0]
    data = WholeVolumed((4, 4, 4), spacing=5.0)({**make_brain_box(case, 5.0).as_dict()})
    data["pred"] = data["brain"].float().expand(3, -1, -1, -1)
    result = HeatmapToSourced("pred")(data)
    image = nib.load(case["modalities"]["flair"])
    found = np.asarray(result["pred"][0]) > 0.5
    brain = np.asarray(image.dataobj) != 0
    assert found.shape == brain.shape
    assert 2 * (found & brain).sum() / (found.sum() + brain.sum()) > 0.97
