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
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, ornt_transform

from monai_rrr.data.tags import Tags, check_tags, derive_tags, read_tags, slice_labels, tag_budget, write_tags
from monai_rrr.errors import ConfigError, DataError, DatasetError

HEADER = "case_id,WT_first,WT_last,TC_first,TC_last,ET_first,ET_last\n"
TAGS: dict[str, Tags] = {
    "a, with comma": {"WT": (41, 97), "TC": (50, 60), "ET": (50, 50)},
    "b": {"WT": (0, 3), "TC": None, "ET": None},
    "control": {"WT": None, "TC": None, "ET": None},
}


@pytest.mark.parametrize("name", ["tags.csv", "tags.json", "TAGS.CSV"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    write_tags(tmp_path / name, TAGS)
    assert read_tags(tmp_path / name) == TAGS
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_as_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    write_tags(path, {"b": TAGS["b"]})
    assert path.read_text() == HEADER + "b,0,3,,,,\n"
    # As spreadsheets save it: byte order mark, semicolons, spaces, Windows line ends, empty rows, own column order.
    path.write_bytes(
        b"\xef\xbb\xbfET_first;ET_last;WT_first; WT_last;TC_first;TC_last;case_id\r\n;;;;;;\r\n; ;0; 3 ;;; b\r\n\r\n"
    )
    assert read_tags(path) == {"b": TAGS["b"]}
    json_path = tmp_path / "tags.json"
    json_path.write_text('{"b": {"WT": [0, 3], "TC": null, "ET": null}}')
    assert read_tags(json_path) == {"b": TAGS["b"]}


@pytest.mark.parametrize(
    ("row", "field", "text"),
    [
        ("a,5,4,,,,", "WT", "row 3: expected 0 <= WT_first <= WT_last, got 5 and 4"),
        ("a,-1,4,,,,", "WT", "row 3: expected 0 <= WT_first <= WT_last, got -1 and 4"),
        ("a,1.5,4,,,,", "WT", "row 3: expected two integers for WT_first and WT_last, got '1.5' and '4'"),
        ("a,1,,,,,", "WT", "row 3: expected two integers for WT_first and WT_last, got '1' and ''"),
        ("a,1,x,,,,", "WT", "got '1' and 'x'"),
        ("a,1,9,2,10,,", "TC", "row 3: expected TC inside WT, got TC 2-10 and WT 1-9"),
        ("a,,,2,3,,", "TC", "row 3: expected TC inside WT, got TC 2-3 and WT absent"),
        ("a,1,9,2,3,1,3", "ET", "row 3: expected ET inside TC, got ET 1-3 and TC 2-3"),
        ("a,1,9,,,1,3", "ET", "row 3: expected ET inside TC, got ET 1-3 and TC absent"),
        ("a,1,2", "tags", "row 3: expected 7 cells, got 3"),
        ("a,1_0,12,,,,", "WT", "expected two integers for WT_first and WT_last, got '1_0' and '12'"),
        (",1,9,,,,", "case_id", "row 3: expected a case id, got nothing"),
        ("FIRST,1,9,,,,", "case_id", "row 3: expected each case once, also in row 2"),
    ],
)
def test_wrong_rows(tmp_path: Path, row: str, field: str, text: str) -> None:
    path = tmp_path / "tags.csv"
    path.write_text(f"{HEADER}first,1,2,,,,\n{row}\nlast,9,1,,,,\n")
    with pytest.raises(DatasetError, match="2 faults found") as caught:
        read_tags(path)
    fault, last = caught.value.faults
    assert text in str(fault)
    assert (fault.code, fault.case_id, fault.field, fault.path) == (
        "tags-row",
        row.split(",", maxsplit=1)[0] or None,
        field,
        str(path),
    )
    assert "case last, field WT" in str(last)
    assert "row 4" in str(last)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("t.csv", "", r"expected the columns \('case_id', .*got \[\]"),
        ("t.csv", "case_id,WT_first\n", r"expected the columns .*got \['case_id', 'WT_first'\]"),
        ("t.csv", HEADER.replace("ET_last", "ET_last,age"), "got .*'age'"),
        ("t.csv", b"\xff\xfe\x00", "expected UTF-8 text"),
        ("t.json", "{", "expected JSON text, got"),
        ("t.json", "[1]", r'expected {"case": .*got list'),
        ("t.json", "3", "got int"),
        ("t.json", '{"a": 3}', "case a, field tags.*entry 1: expected an object of regions, got 3"),
        ("t.txt", "", "expected a .csv or .json file, got 't.txt'"),
    ],
)
def test_no_table(tmp_path: Path, name: str, content: str | bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=text) as caught:
        read_tags(tmp_path / name)
    assert caught.value.code == "tags-format"


@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ({"WT": [1, 2], "TC": None}, "entry 1: expected the regions WT, TC, ET, got WT, TC"),
        ({"WT": [1, 2], "TC": None, "ET": None, "ED": None}, "got WT, TC, ET, ED"),
        ({"WT": [1], "TC": None, "ET": None}, r"expected WT to be \[first, last\] or null, got \[1\]"),
        ({"WT": [1, True], "TC": None, "ET": None}, "expected two integers .* got 1 and True"),
        ({"WT": [1, 2.0], "TC": None, "ET": None}, "got 1 and 2.0"),
        ({"WT": {"a": 1, "b": 2}, "TC": None, "ET": None}, "expected two integers"),
    ],
)
def test_wrong_json_entries(tmp_path: Path, spans: Any, text: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"a": spans}))
    with pytest.raises(DatasetError, match=text):
        read_tags(tmp_path / "t.json")


def test_duplicate_json_case(tmp_path: Path) -> None:
    entry = '"a": {"WT": null, "TC": null, "ET": null}'
    (tmp_path / "t.json").write_text(f"{{{entry}, {entry}}}")
    with pytest.raises(DatasetError, match="entry 2: expected each case once, also in entry 1"):
        read_tags(tmp_path / "t.json")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file-unreadable.*No such file"):
        read_tags(tmp_path / "t.csv")


def test_write_refuses(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(DataError, match=r"\[tags\] case a, field TC: expected TC inside WT, got TC 1-2 and WT absent"):
        write_tags(path, {"a": {"WT": None, "TC": (1, 2), "ET": None}})
    with pytest.raises(ValueError, match=r"expected a path that ends in .csv or .json, got 't.txt'"):
        write_tags(tmp_path / "t.txt", TAGS)
    assert not list(tmp_path.iterdir())


def test_check_tags_against_the_number_of_slices() -> None:
    check_tags(TAGS["b"], slices=4)
    with pytest.raises(DataError, match="case b, field WT: expected slices 0 to 2, got WT 0-3"):
        check_tags(TAGS["b"], slices=3, case_id="b")


def test_budget() -> None:
    assert tag_budget(TAGS) == {"cases": 3, "integers": 8, "integers_per_case": pytest.approx(8 / 3)}
    assert tag_budget({}) == {"cases": 0, "integers": 0, "integers_per_case": 0.0}


def test_slice_labels() -> None:
    z = torch.tensor([-0.6, -0.5, 0.0, 1.2, 2.5, 2.51, 3.0])
    out = slice_labels({"WT": (0, 2), "TC": (2, 2), "ET": None}, z)
    assert out.dtype == torch.float32
    assert out.tolist() == [[0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0, 0], [0] * 7]
    assert slice_labels(TAGS["control"], []).shape == (3, 0)
    whole = slice_labels(TAGS["a, with comma"], list(range(155)))
    assert whole.sum(1).tolist() == [57, 11, 1]
    with pytest.raises(ValueError, match=r"expected z of shape D, got \(2, 2\)"):
        slice_labels(TAGS["b"], torch.zeros(2, 2))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LPI", "SAR", "PIR"])
def test_derive_counts_from_the_inferior_end(tmp_path: Path, codes: str) -> None:
    label = np.zeros((6, 7, 9), np.uint8)
    label[2:4, 2:5, 1:6] = 2
    label[2, 3, 3:5] = 1
    label[3, 3, 4] = 4
    canonical = nib.Nifti1Image(label, np.diag([1.0, 1.0, 2.0, 1.0]))
    image = canonical.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes)))
    assert "".join(nib.aff2axcodes(image.affine)) == codes
    nib.save(image, tmp_path / "a_seg.nii.gz")
    cases = [{"case_id": "a", "modalities": {}, "label": str(tmp_path / "a_seg.nii.gz")}]
    assert derive_tags(cases, "brats2018") == {"a": {"WT": (1, 5), "TC": (3, 4), "ET": (4, 4)}}


def test_derive_refuses_and_names_all(tmp_path: Path) -> None:
    for name, dtype, value in (("a", np.uint8, 3), ("b", np.float32, 1.5), ("c", np.float32, 3.9999)):
        label = np.zeros((3, 3, 3), dtype)
        label[1, 1, 1] = value
        nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / f"{name}.nii.gz")
    cases = [{"case_id": name, "modalities": {}, "label": str(tmp_path / f"{name}.nii.gz")} for name in "abc"]
    assert derive_tags(cases[2:], "brats2018")["c"]["ET"] == (1, 1)
    with pytest.raises(DatasetError, match="4 faults found") as caught:
        derive_tags([*cases, {"case_id": "d", "modalities": {}}, cases[2]], "brats2018")
    assert [(fault.code, fault.case_id) for fault in caught.value.faults] == [
        ("label-values", "a"),
        ("label-fractional", "b"),
        ("label-missing", "d"),
        ("duplicate-case", "c"),
    ]
    with pytest.raises(ConfigError, match="expected a label convention"):
        derive_tags(cases, "")
