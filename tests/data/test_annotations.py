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

"""Several annotators per case: who is missing, who can be compared, and what a batch holds of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandFlipd, SpatialCropd

from monai_rrr.data import (
    BrainBoxCache,
    LoadAnnotationsd,
    LoadBrainBoxd,
    annotator_weights,
    check_annotations,
    load_annotated,
    load_datalist,
)
from monai_rrr.data.annotations import annotator_groups
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.transforms import WholeVolumed
from monai_rrr.utils.class_map import from_classes, to_classes
from monai_rrr.utils.conventions import CONVENTIONS, get_convention

BRATS = get_convention("brats2018")


def drawn(**names: str) -> list[dict[str, Any]]:
    """Return cases by id, each with the letters of those who drew it."""
    return [{"case_id": case, "annotations": dict.fromkeys(who, f"{case}.nii.gz")} for case, who in names.items()]


@pytest.fixture(scope="module")
def annotated(phantom_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a datalist with masks by a1 (a copy of the label), a2 (shifted, WT and TC only), and a3 (half of the z)."""
    folder = tmp_path_factory.mktemp("annotated")
    entries = []
    for number, case in enumerate(load_datalist(phantom_cohort)[:3]):
        image = nib.load(case["label"])
        label = np.asarray(image.dataobj)
        lower = nib.Nifti1Image(label[..., : label.shape[2] // 2], image.affine)
        for name, mask in (("a1", image), ("a2", nib.Nifti1Image(np.roll(label, 1, 0), image.affine)), ("a3", lower)):
            nib.save(mask, folder / f"{number}_{name}.nii.gz")
        found: dict[str, Any] = {"a1": f"{number}_a1.nii.gz", "a2": None, "a3": None}
        if number > 0:
            found["a2"] = {"path": f"{number}_a2.nii.gz", "regions": ["WT", "TC"]}
        if number == 2:
            found = {"a3": f"{number}_a3.nii.gz", "a2": found["a2"]}
        entries.append({"case_id": case["case_id"], "modalities": case["modalities"], "annotations": found})
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": entries}))
    return path


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_classes_and_values_go_there_and_back(name: str) -> None:
    convention = CONVENTIONS[name]
    values = np.array([0, convention.ncr, convention.ed, convention.et], np.uint8).reshape(2, 2)
    assert to_classes(values, convention).tolist() == [[0, 1], [2, 3]]
    np.testing.assert_array_equal(from_classes(to_classes(values, convention), convention), values)


@pytest.mark.parametrize(
    ("regions", "known"),
    [
        (["WT", "TC", "ET"], [0, 1, 2, 3]),
        (["WT", "TC"], [0, -1, 2, -1]),
        (["WT", "ET"], [0, -1, -1, 3]),
        (["WT"], [0, -1, -1, -1]),
        (["TC", "ET"], [-1, 1, -1, 3]),
        (["ET"], [-1, -1, -1, 3]),
        (["TC"], [-1, -1, -1, -1]),
    ],
)
def test_a_class_is_known_where_the_regions_leave_one(regions: list[str], known: list[int]) -> None:
    assert to_classes(np.array([0, 1, 2, 4]), BRATS, regions).tolist() == known


def test_other_values_and_regions_are_refused() -> None:
    with pytest.raises(DataError, match="label-values"):
        to_classes(np.array([3]), BRATS)
    for regions in ([], ["liver"]):
        with pytest.raises(ValueError, match="expected regions out of"):
            to_classes(np.array([1]), BRATS, regions)


def test_groups_equal_those_of_a_walk() -> None:
    rng = np.random.RandomState(0)
    for _ in range(50):
        cases = {f"c{i}": [f"a{j}" for j in range(6) if rng.uniform() < 0.25] for i in range(5)}
        left, walked = {name for names in cases.values() for name in names}, []
        while left:
            reached = {min(left)}
            while more := {n for names in cases.values() if reached & set(names) for n in names} - reached:
                reached |= more
            walked.append(sorted(reached))
            left -= reached
        assert annotator_groups(cases) == sorted(walked)


def test_annotators_who_share_no_case_are_refused() -> None:
    assert check_annotations(drawn(x="ab", y="bc", z="c")) == ("a", "b", "c")
    with pytest.raises(DatasetError, match=r"annotators-disconnected.*2 separate groups: a, b \| c"):
        check_annotations(drawn(x="ab", z="c"))


def test_all_faults_of_annotators_come_at_once() -> None:
    cases = [*drawn(x="ab", y=""), {"case_id": "z", "annotations": {"Dr. Who": "z.nii.gz", "a": "y.nii.gz"}}]
    with pytest.raises(DatasetError) as found:
        check_annotations(cases, ["a", "q"])
    codes = [fault.code for fault in found.value.faults]
    assert codes == ["annotations-missing", "annotator-id", *["annotator-unknown"] * 2, "annotator-unused"]
    assert check_annotations(drawn(x="ba"), ["b", "a"]) == ("a", "b")


def test_weights() -> None:
    cases = drawn(**{f"c{i}": "ab" if i else "abc" for i in range(100)})
    weights = annotator_weights(cases, ["a", "b", "c", "d"])
    assert weights.tolist() == pytest.approx([201 / 400, 201 / 400, 5.0, 0.0])
    assert annotator_weights(drawn(x="ab", y="ab"), ["a", "b"]).tolist() == [1.0, 1.0]


def test_a_datalist_keeps_its_annotations_only_when_asked(annotated: Path) -> None:
    assert all("annotations" not in case for case in load_datalist(annotated))
    cases = load_annotated(annotated)
    assert cases[0]["annotations"] == {"a1": str(annotated.parent / "0_a1.nii.gz"), "a2": None, "a3": None}
    assert cases[1]["annotations"]["a2"]["regions"] == ["WT", "TC"]
    with pytest.raises(DatasetError, match=r"annotator-unused.*a9"):
        load_annotated(annotated, ["a1", "a2", "a3", "a9"])


@pytest.mark.parametrize(
    "wrong", [["x.nii"], {"a": 5}, {"a": {"path": "x"}}, {"a": {"path": "x", "regions": ["liver"]}}, {"a": ""}]
)
def test_wrong_entries_are_named(wrong: Any, tmp_path: Path) -> None:
    entry = {"case_id": "x", "modalities": {"t1": "x.nii"}, "annotations": wrong}
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(DatasetError, match=r"datalist-entry.*training\[0\]"):
        load_annotated(tmp_path / "list.json")


def test_a_batch_on_the_grid_of_the_image(annotated: Path) -> None:
    cases = [{**case, "image": case["modalities"]["flair"]} for case in load_annotated(annotated)]
    names = ["a1", "a2", "a3"]
    load = LoadAnnotationsd(names, "brats2018", annotator_weights(cases, names))
    steps = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), load])
    batch = next(iter(DataLoader(CacheDataset(cases, steps, progress=False), batch_size=3)))
    assert batch["annotations"].shape == (3, 3, *batch["image"].shape[2:])
    assert batch["annotations"].dtype == torch.int8
    assert batch["annotated"].tolist() == [[True, False, False], [True, True, False], [False, True, True]]
    assert batch["annotator_weight"][0].tolist() == pytest.approx([5 / 6, 5 / 6, 5 / 3])
    for number, case in enumerate(cases):
        image = nib.load(case["image"])
        label = np.asarray(nib.load(annotated.parent / f"{number}_a1.nii.gz").dataobj)
        turned = to_classes(label, BRATS)
        for row, (name, entry) in enumerate((n, case["annotations"].get(n)) for n in names):
            got = batch["annotations"][number, row].numpy()
            if entry is None:
                expected = np.full(image.shape, -1)
            elif name == "a1":
                expected = turned
            elif name == "a2":
                expected = to_classes(np.roll(label, 1, 0), BRATS, ["WT", "TC"])
            else:
                expected = turned.copy()
                expected[..., label.shape[2] // 2 :] = -1
            np.testing.assert_array_equal(got, expected)


def test_masks_move_with_the_image(annotated: Path) -> None:
    case = load_annotated(annotated)[0]
    keys = ["image", "annotations"]
    flip, crop = (
        RandFlipd(keys, prob=1.0, spatial_axis=0),
        SpatialCropd(keys, roi_start=(5, 5, 3), roi_end=(40, 40, 20)),
    )
    load = [LoadImaged("image"), EnsureChannelFirstd("image"), LoadAnnotationsd(["a1", "a2", "a3"], "brats2018")]
    sample = {**case, "image": case["modalities"]["flair"]}
    plain, moved = Compose(load)(sample), Compose([*load, flip, crop])(sample)
    assert isinstance(moved["annotations"], MetaTensor)
    torch.testing.assert_close(moved["annotations"].affine, moved["image"].affine)
    expected = plain["annotations"].flip(1)[:, 5:40, 5:40, 3:20]
    np.testing.assert_array_equal(moved["annotations"].numpy(), expected.numpy())


@pytest.mark.parametrize("spacing", [None, 10.0])
def test_masks_lie_as_the_label_does_in_a_brain_box(spacing: float | None, annotated: Path, tmp_path: Path) -> None:
    case = load_annotated(annotated)[0]
    case["label"] = case["annotations"]["a1"]
    box = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache", spacing=spacing), with_label=True)
    sample = Dataset([case], Compose([box, LoadAnnotationsd(["a1", "a2", "a3"], "brats2018")]))[0]
    expected = to_classes(sample["label"][0].numpy(), BRATS)
    np.testing.assert_array_equal(sample["annotations"][0].numpy(), expected)
    assert (sample["annotations"][1:] == -1).all()
    assert sample["annotated"].tolist() == [True, False, False]


def test_masks_lie_in_a_whole_volume_as_in_the_world(annotated: Path, tmp_path: Path) -> None:
    """Every voxel of the network's grid has the class of the file's voxel that is nearest to it."""
    case = load_annotated(annotated)[0]
    load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"))
    steps = [load, WholeVolumed((8, 8, 8), spacing=6.3, multiple=4), LoadAnnotationsd(["a1", "a2", "a3"], "brats2018")]
    sample = Dataset([case], Compose(steps))[0]
    found, image = sample["annotations"][0].numpy(), nib.load(case["annotations"]["a1"])
    voxels = np.stack(np.indices(found.shape)).reshape(3, -1).T
    place = nib.affines.apply_affine(np.linalg.inv(image.affine) @ sample["geometry"]["affine"], voxels)
    inside = ((place > -0.49) & (place < np.array(image.shape) - 0.51)).all(1)
    nearest = np.rint(place[inside]).astype(int)
    expected = to_classes(np.asarray(image.dataobj), BRATS)[tuple(nearest.T)]
    assert (expected > 0).sum() > 20
    np.testing.assert_array_equal(found.reshape(-1)[inside], expected)


def test_what_a_network_was_not_built_for_is_refused(annotated: Path) -> None:
    case = {**load_annotated(annotated)[1], "image": torch.zeros(1, 2, 2, 2), "affine": np.eye(4)}
    with pytest.raises(DataError, match=r"annotator-unknown.*case Phantom_1_0001.*got a2, a3"):
        LoadAnnotationsd(["a1"], "brats2018")(case)
    with pytest.raises(DataError, match=r"label-values.*a1: expected"):
        LoadAnnotationsd(["a1", "a2", "a3"], "brats2023")(case)
    with pytest.raises(ValueError, match="different annotator ids"):
        LoadAnnotationsd(["a1", "a1"], "brats2018")
    with pytest.raises(ValueError, match="one weight for each"):
        LoadAnnotationsd(["a1", "a2"], "brats2018", [1.0])
