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

"""Labels that annotators hand in: checked, kept whole, and found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_rrr.data import load_datalist, read_verified
from monai_rrr.errors import DataError
from monai_rrr.label import CaseStore, write_evidence
from monai_rrr.label.evidence import write_marks
from monai_rrr.utils.nifti_file import affine_geometry, nifti_bytes

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SHAPE = (12, 11, 10)


def write(path: Path, array: Any, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nifti_bytes(array, affine_geometry(affine)))
    return path


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    rng = np.random.default_rng(0)
    for case in ("case a", "b"):
        for name in ("t1", "flair"):
            write(tmp_path / "data" / case / f"{case}_{name}.nii.gz", rng.random(SHAPE, np.float32))
    return CaseStore(load_datalist(tmp_path / "data"), tmp_path / "store")


def label(tmp_path: Path, value: int, affine: Any = AFFINE, shape: tuple[int, ...] = SHAPE) -> Path:
    array = np.zeros(shape, np.uint8)
    array[3:6, 3:6, 3:6] = value
    return write(tmp_path / "label.nii.gz", array, affine)


def test_what_is_handed_in_is_found_again(store: CaseStore, tmp_path: Path) -> None:
    before = sorted((tmp_path / "data").rglob("*"))
    one = store.submit("case a", label(tmp_path, 1), "final", {"annotator": "reader_1", "seconds": 40})
    two = store.submit("case a", label(tmp_path, 2), "final", {"annotator": "reader_2"})
    assert store.newest("case a", "final") == two
    assert [s.annotator for s in store.submissions("final")] == ["reader_1", "reader_2"]
    assert one.info["seconds"] == 40
    assert store.tags("case a") == ["final"]
    assert store.tags("b") == []
    again = store.submit("case a", label(tmp_path, 3), "final", {"annotator": "reader_1"})
    assert not one.path.exists(), "the older version of the same annotator is gone"
    assert store.newest("case a", "final") == again
    assert sorted((tmp_path / "data").rglob("*")) == before, "the images are never written to"
    store.remove("case a", "final")
    assert store.submissions("final") == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"case_id": "../b"}, "case-unknown"),
        ({"case_id": "c"}, "case-unknown"),
        ({"tag": "../x"}, "label-tag"),
        ({"tag": "Final/"}, "label-tag"),
        ({"info": {"annotator": "Dr. Jane Doe"}}, "annotator-id"),
        ({"info": {"annotator": "../../a"}}, "annotator-id"),
        ({"info": {"more": float("nan")}}, "label-info"),
        ({"value": 4}, "label-values"),
        ({"tag": "evidence", "value": 3}, "label-values"),
        ({"shape": (12, 11, 9)}, "shape-mismatch"),
        ({"affine": AFFINE + np.eye(4, k=3)}, "affine-mismatch"),
    ],
)
def test_v2_v3_what_is_refused_leaves_nothing(
    store: CaseStore, tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    given = {"case_id": "b", "tag": "final", "info": {}, "value": 1, "affine": AFFINE, "shape": SHAPE, **change}
    path = label(tmp_path, given["value"], given["affine"], given["shape"])
    with pytest.raises(DataError, match=rf"\[{code}\]"):
        store.submit(given["case_id"], path, given["tag"], given["info"])
    assert not store.folder.exists()


def test_notes_of_several_writers_stay(store: CaseStore) -> None:
    store.note("b", {"score_inconsistency": 0.5})
    CaseStore(store.cases.values(), store.folder).note("b", {"strategy": {"first": {"ts": 1}}})
    assert store.notes("b") == {"score_inconsistency": 0.5, "strategy": {"first": {"ts": 1}}}
    with pytest.raises(DataError, match="simple name"):
        store.note("b", {"../x": 1})
    with pytest.raises(DataError, match="JSON values"):
        store.note("b", {"x": float("inf")})


def test_a_label_that_was_replaced_by_hand_is_refused(store: CaseStore, tmp_path: Path) -> None:
    kept = store.submit("b", label(tmp_path, 1), "final", {})
    kept.path.write_bytes(label(tmp_path, 2).read_bytes())
    with pytest.raises(DataError, match="another content"):
        store.newest("b", "final")


WRITER = """
import sys
from monai_rrr.data import load_datalist
from monai_rrr.label import CaseStore
store = CaseStore(load_datalist(sys.argv[1] + "/data"), sys.argv[1] + "/store")
print("ready", flush=True)
for turn in range(10_000):
    store.submit("b", sys.argv[1] + f"/{turn % 2}.nii.gz", "final", {"annotator": "a", "turn": turn})
    print(turn, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("lines", [2, 5, 9])
def test_v5_killed_while_a_label_is_saved(store: CaseStore, tmp_path: Path, lines: int) -> None:
    """What is found afterwards is one of the labels, whole, and the next one can be saved."""
    for value in (0, 1):
        label(tmp_path, value + 1).rename(tmp_path / f"{value}.nii.gz")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(lines):
            last = writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    found = store.newest("b", "final")
    assert found is not None
    assert found.info["turn"] >= int(last)
    content = (tmp_path / f"{found.info['turn'] % 2}.nii.gz").read_bytes()
    assert found.path.read_bytes() == content
    again = store.submit("b", tmp_path / "0.nii.gz", "final", {"annotator": "a"})
    assert [path.name for path in again.path.parent.glob("*.nii*")] == [again.path.name]


def test_evidence_marks_become_a_mask(tmp_path: Path) -> None:
    marks, tumor = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    marks[0], marks[1] = 1, 2
    tumor[1:3] = 2
    drawn, final = write(tmp_path / "m.nii.gz", marks), write(tmp_path / "f.nii.gz", tumor)
    both = read_verified(write_evidence(drawn, final, tmp_path / "x.nii.gz")).array
    assert [int(both[x, 0, 0]) for x in range(4)] == [3, 0, 2, 0], "allowed, not allowed, tumor, nothing"
    marks[0] = 0
    alone = read_verified(write_evidence(write(tmp_path / "n.nii.gz", marks), None, tmp_path / "y.nii.gz"))
    assert [int(alone.array[x, 0, 0]) for x in range(4)] == [3, 0, 3, 3], "all but what is not allowed"
    assert np.allclose(alone.affine, AFFINE)


def test_evidence_marks_are_told_apart(tmp_path: Path) -> None:
    marks = np.zeros(SHAPE, np.uint8)
    marks[0], marks[1] = 1, 2
    found = write_marks(write(tmp_path / "m.nii.gz", marks), tmp_path / "out")
    assert {name: int(read_verified(path).array.sum()) for name, path in found.items()} == {
        **{"allowed": 110, "not_allowed": 110},
    }
    marks[0] = 0
    assert set(write_marks(write(tmp_path / "n.nii.gz", marks), tmp_path / "out")) == {"not_allowed"}
