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


"""Cases of which each has its own kind of supervision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monai_rrr.data import load_mixed, supervision
from monai_rrr.errors import DataError, DatasetError

TAGS = {"WT": [1, 5], "TC": [2, 4], "ET": None}


def write(folder: Path, *entries: dict[str, Any]) -> Path:
    cases = [
        {"case_id": name, "modalities": {"t1": f"{name}_t1.nii.gz"}, **e}
        for name, e in zip("abcd", entries, strict=False)
    ]
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": cases}))
    return path


def test_each_case_has_what_the_manifest_says(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"tags": TAGS, "annotations": {"r1": "a1.nii.gz", "r2": None}},
        {"evidence": {"not_allowed": "marks/b.nii.gz"}, "annotations": {"r1": None}},
        {"annotations": {"r1": {"path": "c.nii.gz", "regions": ["WT"]}, "r2": "c2.nii.gz"}, "label": "truth.nii.gz"},
        {},
    )
    a, b, c, d = load_mixed(path, ["r1", "r2"])
    assert a["tags"] == {"WT": (1, 5), "TC": (2, 4), "ET": None}
    assert a["annotations"] == {"r1": str(tmp_path / "a1.nii.gz"), "r2": None}
    assert b["evidence"] == {"not_allowed": str(tmp_path / "marks" / "b.nii.gz")}
    assert "annotations" not in b, "nobody drew it"
    assert "label" not in c, "training never sees the truth"
    assert set(d) == {"case_id", "modalities"}
    counts = {"cases": 4, "tags": 1, "annotations": 2, "masks": 3, "evidence": 1, "unlabeled": 1}
    assert supervision([a, b, c, d]) == counts


def test_tags_from_elsewhere_take_their_place(tmp_path: Path) -> None:
    other = {"WT": (7, 8), "TC": None, "ET": None}
    a, b = load_mixed(write(tmp_path, {"tags": TAGS}, {"tags": TAGS}), tags={"b": other})
    assert a["tags"]["WT"] == (1, 5)
    assert b["tags"] == other


def test_all_wrong_tags_are_named_at_once(tmp_path: Path) -> None:
    outside = {"WT": [3, 4], "TC": [2, 9], "ET": None}
    with pytest.raises(DatasetError) as caught:
        load_mixed(write(tmp_path, {"tags": outside}, {"tags": {"WT": [1, 2]}}, {"tags": TAGS}))
    assert [(fault.code, fault.case_id) for fault in caught.value.faults] == [("tags", "a"), ("tags", "b")]


def test_annotators_are_checked_where_they_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"annotations": {"r1": "a.nii.gz"}}, {"annotations": {"r2": "b.nii.gz"}})
    assert len(load_mixed(path)) == 2
    with pytest.raises(DatasetError, match="linked by shared cases"):
        load_mixed(path, ["r1", "r2"])
    with pytest.raises(DatasetError, match="expected masks by r3, found none"):
        load_mixed(write(tmp_path, {"annotations": {"r1": "a.nii.gz"}}), ["r1", "r3"])


def test_cases_that_nobody_drew_need_no_annotators(tmp_path: Path) -> None:
    assert len(load_mixed(write(tmp_path, {"tags": TAGS}), ["r1", "r2"])) == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"evidence": {"maybe": "a.nii.gz"}}, "expected evidence to map some of"),
        ({"evidence": {}}, "expected evidence to map some of"),
        ({"evidence": {"allowed": None}}, "expected evidence allowed to be a path, got None"),
        ({"tags": [1, 2]}, "expected tags to map regions"),
    ],
)
def test_malformed_entries_are_named(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, DatasetError), match=message):
        load_mixed(write(tmp_path, {"tags": TAGS}, entry))
