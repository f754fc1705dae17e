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
import random
from pathlib import Path
from typing import Any

import pytest

from monai_rrr.data.datalist import load_datalist
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.enums import MODALITIES


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return two BraTS cases, the second without T1c and label, written in random order."""
    names = [f"a/a_{suffix}.nii.gz" for suffix in ("t1", "t1ce", "t2", "flair", "seg")]
    names += [f"b/b-{suffix}.nii.gz" for suffix in ("t1n", "T2w", "t2f")]
    random.shuffle(names)
    return touch(tmp_path / "data", *names)


def test_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = load_datalist(folder)
    assert first["case_id"] == "a"
    assert tuple(first["modalities"]) == MODALITIES
    assert first["modalities"]["t1c"] == str(folder / "a" / "a_t1ce.nii.gz")
    assert first["label"] == str(folder / "a" / "a_seg.nii.gz")
    assert second == {
        "case_id": "b",
        "modalities": {
            "t1": str(folder / "b" / "b-t1n.nii.gz"),
            "t2": str(folder / "b" / "b-T2w.nii.gz"),
            "flair": str(folder / "b" / "b-t2f.nii.gz"),
        },
    }
    assert json.loads(json.dumps(first)) == first
    monkeypatch.chdir(folder.parent)
    assert load_datalist("data") == [first, second]
    monkeypatch.chdir(folder / "b")
    assert load_datalist(".") == [second]


def test_selection(folder: Path) -> None:
    first, second = load_datalist(folder, modalities=["flair", "t1c"], with_labels=False)
    assert list(first["modalities"]) == ["t1c", "flair"]
    assert list(second["modalities"]) == ["flair"]
    assert "label" not in first
    with pytest.raises(DatasetError, match=r"case b, field modalities: expected at least one of t1c, found none"):
        load_datalist(folder, modalities=["t1c"])
    with pytest.raises(DatasetError, match=r"\[label-missing\] case b, field label"):
        load_datalist(folder, with_labels=True)
    with pytest.raises(ValueError, match=r"expected modalities to be different names .*, got \('dwi',\)"):
        load_datalist(folder, modalities=["dwi"])
    with pytest.raises(ValueError, match="expected require to be different names"):
        load_datalist(folder, require=["t1", "t1"])


def test_d5_all_missing_modalities_in_one_report(folder: Path) -> None:
    (folder / "a" / "a_t2.nii.gz").unlink()
    (folder / "a" / "a_t1.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"(?s)3 faults found.*t1c: \*_t1ce or \*_t1c or \*_t1gd") as caught:
        load_datalist(folder, require=MODALITIES)
    assert [(fault.case_id, fault.field) for fault in caught.value.faults] == [("a", "t1"), ("a", "t2"), ("b", "t1c")]


def test_label_alone_is_no_case(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"case a, field modalities: expected at least one of t1, t1c, t2, flair"):
        load_datalist(touch(tmp_path, "a/a_seg.nii.gz"))


def test_nothing_found(tmp_path: Path) -> None:
    touch(tmp_path, "a/readme.txt", "a/a_dwi.nii.gz")
    with pytest.raises(DataError, match=r"\[no-cases\] file .*expected at least one case.*t1c: \*_t1ce or"):
        load_datalist(tmp_path)
    with pytest.raises(DataError, match=r"source-missing.*expected a folder or a JSON datalist, got nothing"):
        load_datalist(tmp_path / "none")
    with pytest.raises(DataError, match="got a file of another kind"):
        load_datalist(tmp_path / "a" / "readme.txt")


MSD = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "training": [
        {"image": "./imagesTr/BRATS_002.nii.gz", "label": "./labelsTr/BRATS_002.nii.gz"},
        {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"},
    ],
    "test": ["./imagesTs/BRATS_003.nii.gz"],
}


def test_msd(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset.json", MSD)
    first, second = load_datalist(tmp_path)
    assert (first["case_id"], second["case_id"]) == ("BRATS_001", "BRATS_002")
    assert first["modalities"] == dict.fromkeys(MODALITIES, str(tmp_path / "imagesTr" / "BRATS_001.nii.gz"))
    assert first["volumes"] == {"t1": 1, "t1c": 2, "t2": 3, "flair": 0}
    assert first["label"] == str(tmp_path / "labelsTr" / "BRATS_001.nii.gz")
    assert load_datalist(path) == [first, second]
    (selected, _) = load_datalist(path, modalities=["flair"])
    assert selected["volumes"] == {"flair": 0}
    (test,) = load_datalist(tmp_path, section="test")
    assert test["case_id"] == "BRATS_003"
    assert "label" not in test


def test_monai_datalist(tmp_path: Path) -> None:
    names = ["A/flair.nii.gz", "A/t1.nii.gz"]
    path = write(
        tmp_path / "list.json", {"validation": [{"image": names, "label": "A/seg.nii.gz"}, {"image": "x.nii"}]}
    )
    with pytest.raises(DatasetError, match=r"field validation\[0\].*expected modalities to be given as the order"):
        load_datalist(path, section="validation")
    with pytest.raises(DatasetError, match=r"validation\[0\].*expected 1 images \(t2\), got 2"):
        load_datalist(path, ["t2"], section="validation")
    first, second = load_datalist(path, ["flair", "t1"], section="validation")
    assert first == {
        "case_id": "A",
        "modalities": {"t1": str(tmp_path / names[1]), "flair": str(tmp_path / names[0])},
        "label": str(tmp_path / "A" / "seg.nii.gz"),
    }
    assert (second["case_id"], second["volumes"]) == ("x", {"t1": 1, "flair": 0})


def test_list_of_cases(folder: Path, tmp_path: Path) -> None:
    cases = load_datalist(folder)
    cases[0]["split"] = "validation"
    cases[1]["volumes"] = {"t1": 2}
    assert load_datalist(write(tmp_path / "cases.json", cases)) == cases
    assert load_datalist(write(tmp_path / "sections.json", {"training": cases})) == cases
    relative = {"case_id": "c", "modalities": {"t1": "../a.nii"}, "extra": 1}
    (case,) = load_datalist(write(tmp_path / "deep" / "cases.json", [relative]))
    assert case == {"case_id": "c", "modalities": {"t1": str(tmp_path / "a.nii")}}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"train": []}, r"datalist-section.*expected a list under 'training', got lists under \['train'\]"),
        (3, "datalist-section.*got lists under no key"),
        ([], "no-cases"),
        ([5], r"datalist-entry.*field training\[0\].*expected an object with image or modalities, got int"),
        ([{"label": "x"}], r"training\[0\].*expected the key image or modalities, got \['label'\]"),
        ([{"case_id": "a", "modalities": {"dwi": "x"}}], "expected modalities to map names out of"),
        ([{"case_id": "a", "modalities": {"t1": 4}}], "expected t1 to be a path, got 4"),
        ([{"modalities": {"t1": "x"}}], "expected case_id to be a non-empty text, got None"),
        ([{"case_id": "", "modalities": {"t1": "x"}}], "expected case_id to be a non-empty text, got ''"),
        ([{"case_id": "a", "modalities": {"t1": "x"}, "volumes": {"t1": -1}}], "to indices from 0, got {'t1': -1}"),
        ([{"case_id": "a", "modalities": {"t1": "x"}, "label": 3}], "expected label to be a path, got 3"),
        ({"modality": {"0": "CT"}, "training": []}, "datalist-modality.*got {'0': 'CT'}"),
        ({"modality": {"1": "T1"}, "training": []}, "datalist-modality"),
        ({"modality": {"0": "T1", "1": "T1w"}, "training": []}, "datalist-modality"),
    ],
)
def test_wrong_json(tmp_path: Path, content: Any, text: str) -> None:
    with pytest.raises((DataError, DatasetError), match=text):
        load_datalist(write(tmp_path / "list.json", content))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
def test_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=r"datalist-json.*expected JSON text, got"):
        load_datalist(tmp_path / "list.json")


def test_all_wrong_entries_in_one_report(tmp_path: Path) -> None:
    path = write(tmp_path / "list.json", [5, {"case_id": "a", "modalities": {"t1": "x"}}, {}])
    with pytest.raises(DatasetError, match="2 faults found") as caught:
        load_datalist(path)
    assert [fault.field for fault in caught.value.faults] == ["training[0]", "training[2]"]


def test_real_cases(brats_folder: Path) -> None:
    cases = load_datalist(brats_folder, require=MODALITIES, with_labels=True)
    assert [case["case_id"] for case in cases] == sorted(path.name for path in brats_folder.iterdir() if path.is_dir())
