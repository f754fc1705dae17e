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

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from monai_rrr.data.tags import Tags
from monai_rrr.data.verify import verify_cases
from monai_rrr.errors import ConfigError, DataError, DatasetError
from monai_rrr.utils.files import sha256

SHAPE = (8, 9, 10)
AFFINE = np.diag([-1.0, -1.0, 1.5, 1.0])


def image_file(path: Path, affine: np.ndarray = AFFINE, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng([seed, *path.name.encode()]).integers(1, 900, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def label_file(path: Path, values: Any, dtype: Any = np.uint8) -> str:
    array = np.zeros(SHAPE, dtype)
    array[2, 3, 2 : 2 + len(values)] = values
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return str(path)


def make_case(root: Path, case_id: str, *names: str) -> dict[str, Any]:
    paths = {name: image_file(root / case_id / f"{case_id}_{name}.nii.gz") for name in names or ("t1", "flair")}
    return {"case_id": case_id, "modalities": paths}


def tags(last: int) -> Tags:
    return {"WT": (0, last), "TC": None, "ET": None}


def test_clean(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, case_id) for case_id in ("b", "a")]
    cases[0]["label"] = label_file(tmp_path / "b" / "b_seg.nii.gz", [1, 2, 4])
    seen: list[tuple[int, int]] = []
    report = verify_cases(cases, "brats2018", progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert seen == [(1, 2), (2, 2)]
    assert report.files == 5
    assert list(report.hashes) == ["b", "a"]
    assert report.hashes["b"]["label"] == sha256(cases[0]["label"])
    assert report.hashes["a"] == {name: sha256(path) for name, path in cases[1]["modalities"].items()}
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True
    assert report.seconds > 0


def test_workers_change_nothing(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, f"c{index}") for index in range(6)]
    Path(cases[3]["modalities"]["t1"]).write_bytes(b"")
    results = [verify_cases(cases, workers=workers).as_dict() for workers in (1, 3)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    assert [fault["code"] for fault in results[0]["faults"]] == ["file-empty"]


def test_l2_label_without_convention(tmp_path: Path) -> None:
    case = make_case(tmp_path, "a")
    case["label"] = label_file(tmp_path / "a" / "a_seg.nii.gz", [1])
    with pytest.raises(ConfigError, match="expected a label convention out of brats2018, brats2023, msd, got none"):
        verify_cases([case])


@pytest.mark.parametrize(
    ("values", "dtype", "convention", "text"),
    [
        ([1, 2, 3], np.uint8, "brats2018", r"got \[0, 1, 2, 3\]; not declared: 3 \(1 voxels\) .*fit brats2023 or msd"),
        ([1, 2, 4], np.uint8, "msd", r"not declared: 4 \(1 voxels\) .*fit brats2018"),
        ([5, 5, -1, 255], np.int16, "msd", r"not declared: -1 \(1 voxels\), 5 \(2 voxels\), 255 \(1 voxels\)"),
        ([0.5, 1], np.float32, "msd", "expected integer label values, got 1 fractional voxels such as 0.5"),
    ],
)
def test_l1_l3_label_values(tmp_path: Path, values: Any, dtype: Any, convention: str, text: str) -> None:
    case = make_case(tmp_path, "a")
    case["label"] = label_file(tmp_path / "a" / "a_seg.nii.gz", values, dtype)
    report = verify_cases([case], convention)
    with pytest.raises(DatasetError, match=text):
        report.raise_if_faulty()
    assert [(fault.case_id, fault.field, fault.path) for fault in report.faults] == [("a", "label", case["label"])]


def test_l3_values_close_to_integers_are_rounded(tmp_path: Path) -> None:
    case = make_case(tmp_path, "a")
    case["label"] = label_file(tmp_path / "a" / "a_seg.nii.gz", [2.9995, 1.0004], np.float32)
    assert verify_cases([case], "msd").ok


def moved(change: str) -> np.ndarray:
    affine = AFFINE.copy()
    if change == "rotated":
        turn = np.deg2rad(2)
        affine[:2, :2] = [[-np.cos(turn), -np.sin(turn)], [np.sin(turn), -np.cos(turn)]]
    else:
        affine[0, 3] = {"shifted 40 mm": 40, "shifted half a voxel": 0.5, "noise": 1e-6}[change]
    return affine


@pytest.mark.parametrize("change", ["shifted 40 mm", "shifted half a voxel", "rotated", "noise"])
@pytest.mark.parametrize("name", ["t1", "t2"])
def test_d7_the_odd_one_out_is_named(tmp_path: Path, change: str, name: str) -> None:
    case = make_case(tmp_path, "a", "t1", "t2", "flair")
    image_file(Path(case["modalities"][name]), moved(change))
    report = verify_cases([case])
    if change == "noise":
        assert report.ok
        return
    (fault,) = report.faults
    assert (fault.code, fault.field, fault.path) == ("affine-mismatch", "affine", case["modalities"][name])
    assert f"{name}: expected the position of" in str(fault)


def test_d6_label_of_another_shape(tmp_path: Path) -> None:
    case = make_case(tmp_path, "a")
    case["label"] = image_file(tmp_path / "a" / "a_seg.nii.gz", shape=(8, 9, 9))
    codes = [(fault.code, fault.field) for fault in verify_cases([case], "msd").faults]
    assert codes == [("label-values", "label"), ("shape-mismatch", "label")]


def test_d11_duplicate_ids(tmp_path: Path) -> None:
    cases = [
        make_case(tmp_path / str(index), name) for index, name in enumerate(["a", "A", "b\u00e9", "be\u0301", "c"])
    ]
    for index, case in enumerate(cases):
        case["modalities"] = {"t1": image_file(tmp_path / str(index) / "t1.nii.gz", seed=index)}
    report = verify_cases(cases)
    assert [fault.code for fault in report.faults] == ["duplicate-case", "duplicate-case"]
    assert f"got 'a' in {tmp_path / '0'}" in str(report.faults[0])
    assert f"and 'A' in {tmp_path / '1'}" in str(report.faults[0])


def test_d12_same_images_under_two_ids(tmp_path: Path) -> None:
    first, second = make_case(tmp_path, "a"), make_case(tmp_path, "b")
    # Compressed anew and with another free text, so that only the voxels are equal.
    for name, path in first["modalities"].items():
        image = nib.load(path)
        image.header["descrip"] = b"copy"
        nib.save(image, second["modalities"][name])
    for case in (first, second):
        case["label"] = label_file(Path(case["modalities"]["t1"]).parent / "seg.nii.gz", [])
    (fault,) = verify_cases([first, second], "msd").faults
    assert (fault.code, fault.case_id, fault.field) == ("duplicate-content", "b", "t1, flair")
    assert "expected different images, got the same voxels in the cases a and b" in str(fault)


def test_same_image_as_two_modalities(tmp_path: Path) -> None:
    case = make_case(tmp_path, "a")
    shutil.copy(case["modalities"]["t1"], case["modalities"]["flair"])
    (fault,) = verify_cases([case]).faults
    assert (fault.code, fault.case_id, fault.field) == ("duplicate-modality", "a", "flair")


def test_d13_4d_file_with_and_without_volumes(tmp_path: Path) -> None:
    path = image_file(tmp_path / "a.nii.gz", shape=(*SHAPE, 4))
    names = ("t1", "t1c", "t2", "flair")
    case: dict[str, Any] = {"case_id": "a", "modalities": dict.fromkeys(names, path)}
    report = verify_cases([case])
    assert [(fault.code, fault.field) for fault in report.faults] == [("volume", name) for name in names]
    case["volumes"] = {name: index for index, name in enumerate(names)}
    report = verify_cases([case])
    assert report.ok
    assert set(report.hashes["a"]) == set(names)


def test_several_faults_of_one_file(tmp_path: Path) -> None:
    case = make_case(tmp_path, "a", "t1")
    image = nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), AFFINE)
    raw = bytearray(image.to_bytes())
    raw[252:256] = bytes(4)  # qform_code and sform_code
    Path(case["modalities"]["t1"]).write_bytes(gzip.compress(raw))
    codes = [(fault.code, fault.field) for fault in verify_cases([case]).faults]
    assert codes == [("affine", "affine"), ("non-finite", "t1")]


def test_tags(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, case_id) for case_id in ("a", "b", "c")]
    report = verify_cases(cases, tags={"a": tags(9), "b": tags(10), "z": tags(3)})
    assert [(fault.code, fault.case_id, fault.field) for fault in report.faults] == [
        ("tags", "b", "WT"),
        ("tags-missing", "c", "tags"),
        ("region-absent", None, "TC"),
        ("region-absent", None, "ET"),
    ]
    assert "expected slices 0 to 9, got WT 0-10" in str(report.faults[0])
    assert ("tags-unused", "z", "tags") in {(note.code, note.case_id, note.field) for note in report.notes}


def test_tags_of_some_cases_only(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, case_id) for case_id in ("a", "07", "c")]
    rows = {"a": {**tags(9), "TC": (1, 2), "ET": (1, 2)}}
    assert verify_cases(cases, tags=rows, partial=True).ok
    wrong = {**rows, "c": tags(10)}
    assert [(f.code, f.case_id) for f in verify_cases(cases, tags=wrong, partial=True).faults] == [("tags", "c")]
    mangled = {**rows, "7": tags(9)}
    (fault,) = verify_cases(cases, tags=mangled, partial=True).faults
    assert (fault.code, fault.case_id) == ("tags-missing", "07"), (
        "a row that a spreadsheet changed is no unlabeled case"
    )
    faults = verify_cases(cases, tags={"z": tags(3)}, partial=True).faults
    assert [(fault.code, fault.case_id) for fault in faults] == [("tags-missing", c) for c in ("a", "07", "c")]


def test_missing_file_and_empty_case(tmp_path: Path) -> None:
    case = make_case(tmp_path, "a")
    Path(case["modalities"]["t1"]).unlink()
    report = verify_cases([case, {"case_id": "b", "modalities": {}}, {"case_id": "c"}], root=tmp_path)
    assert [(fault.code, fault.case_id, fault.field) for fault in report.faults] == [
        ("file-missing", "a", "t1"),
        ("case-format", "b", "modalities"),
        ("case-format", "c", "modalities"),
    ]
    assert report.faults[0].path == str(Path("a") / "a_t1.nii.gz")


def test_path_outside_the_root_stays_absolute(tmp_path: Path) -> None:
    case = make_case(tmp_path, "a", "t1")
    Path(case["modalities"]["t1"]).unlink()
    (fault,) = verify_cases([case], root=tmp_path / "other").faults
    assert fault.path == case["modalities"]["t1"]
    assert isinstance(fault, DataError)


def test_phantom_has_no_fault(phantom_cohort: Path) -> None:
    from monai_rrr.data.datalist import load_datalist

    report = verify_cases(load_datalist(phantom_cohort), "brats2018")
    assert not report.faults
    assert {note.code for note in report.notes} <= {"empty-foreground"}


def test_real_cases_have_no_fault(brats_folder: Path) -> None:
    from monai_rrr.data.datalist import load_datalist

    cases = load_datalist(brats_folder)[:2]
    report = verify_cases(cases, "brats2018")
    assert report.ok
    assert report.files == 10
    with pytest.raises(DatasetError, match="fit brats2018"):
        verify_cases(cases, "brats2023").raise_if_faulty()
