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

import os
from pathlib import Path

import pytest

from monai_rrr.data.discovery import find_cases, match_name, modality_of


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BraTS2021_01476_t1ce.nii.gz", ("BraTS2021_01476", "t1c")),
        ("Brats18_2013_10_1_flair.nii.gz", ("Brats18_2013_10_1", "flair")),
        ("BraTS-GLI-00000-000-t1n.nii.gz", ("BraTS-GLI-00000-000", "t1")),
        ("BraTS-GLI-00000-000-T1C.nii.gz", ("BraTS-GLI-00000-000", "t1c")),
        ("BraTS-GLI-00000-000-t2f.nii", ("BraTS-GLI-00000-000", "flair")),
        ("BraTS-GLI-00000-000-t2w.NII.GZ", ("BraTS-GLI-00000-000", "t2")),
        ("W39_1998.09.19_Segm.nii", ("W39_1998.09.19", "label")),
        ("a.T1Gd.nii.gz", ("a", "t1c")),
        ("flair.nii.gz", ("", "flair")),
        ("x_seg.nii.gz", ("x", "label")),
        ("a_t1_bet.nii.gz", None),
        ("._a_t1.nii.gz", None),
        ("a_t1.mha", None),
        ("at1.nii.gz", None),
        (".DS_Store", None),
    ],
)
def test_match_name(name: str, expected: tuple[str, str] | None) -> None:
    assert match_name(name) == expected


@pytest.mark.parametrize(("name", "expected"), [("T1gd", "t1c"), ("FLAIR", "flair"), ("T1w", "t1"), ("seg", None)])
def test_modality_of(name: str, expected: str | None) -> None:
    assert modality_of(name) == expected


def test_nested_folders_and_one_case(tmp_path: Path) -> None:
    touch(tmp_path, "HGG/a/a_t1.nii.gz", "HGG/a/a_seg.nii.gz", "LGG/b/b_flair.nii.gz", "LGG/b/b_T1CE.nii")
    cases, faults, _ = find_cases(tmp_path)
    assert not faults
    assert cases == [
        {
            "case_id": "a",
            "modalities": {"t1": f"{tmp_path}/HGG/a/a_t1.nii.gz"},
            "label": f"{tmp_path}/HGG/a/a_seg.nii.gz",
        },
        {
            "case_id": "b",
            "modalities": {"t1c": f"{tmp_path}/LGG/b/b_T1CE.nii", "flair": f"{tmp_path}/LGG/b/b_flair.nii.gz"},
        },
    ]
    assert find_cases(tmp_path / "HGG" / "a")[0] == cases[:1]


def test_case_without_common_beginning_is_named_by_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/flair.nii.gz", "sub-01/t2.nii.gz", "sub-02/x_t1.nii.gz", "sub-02/y_t2.nii.gz")
    assert [case["case_id"] for case in find_cases(tmp_path)[0]] == ["sub-01", "sub-02"]


def test_label_with_a_stray_beginning_belongs_to_the_folder(tmp_path: Path) -> None:
    case_id = "BraTS20_Training_355"
    touch(tmp_path, f"{case_id}/{case_id}_t1.nii", f"{case_id}/{case_id}_t2.nii", f"{case_id}/W39_1998.09.19_Segm.nii")
    (case,) = find_cases(tmp_path)[0]
    assert case["case_id"] == case_id
    assert case["label"].endswith("W39_1998.09.19_Segm.nii")


def test_several_cases_in_one_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a_t1.nii.gz", "a_t2.nii.gz", "b_t1.nii.gz", "b_t2.nii.gz", "b_seg.nii.gz")
    cases, faults, _ = find_cases(tmp_path)
    assert not faults
    assert [(case["case_id"], sorted(case["modalities"]), "label" in case) for case in cases] == [
        ("a", ["t1", "t2"], False),
        ("b", ["t1", "t2"], True),
    ]


def test_two_files_for_one_modality(tmp_path: Path) -> None:
    touch(tmp_path, "a/a_t1ce.nii.gz", "a/a_t1gd.nii.gz", "b/b_t1.nii", "b/b_t1.nii.gz", "b/b_seg.nii.gz")
    _, faults, _ = find_cases(tmp_path)
    assert [(fault.code, fault.case_id, fault.field) for fault in faults] == [
        ("ambiguous-file", "a", "t1c"),
        ("ambiguous-file", "b", "t1"),
    ]
    assert "expected one file, got b_t1.nii, b_t1.nii.gz" in str(faults[1])


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_d16_junk_links_and_loops(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    touch(root, "a/a_t1.nii.gz", "a/._a_t2.nii.gz", "a/.DS_Store", "a/notes.txt", ".hidden/h_t1.nii.gz")
    touch(root, "1/2/3/4/5/deep_t1.nii.gz")
    touch(elsewhere, "b/b_t1.nii.gz")
    (root / "b").symlink_to(elsewhere / "b")
    (root / "a" / "loop").symlink_to(root)
    (root / "again").symlink_to(elsewhere / "b")
    cases, faults, _ = find_cases(root)
    assert not faults
    assert [case["case_id"] for case in cases] == ["a", "b"]
