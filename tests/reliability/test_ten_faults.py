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

"""Ten faults, one at a time in one file of two small cases: each must be rejected (one: reported), named."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_rrr.data.datalist import load_datalist
from monai_rrr.data.verify import VerifyReport, verify_cases
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.enums import MODALITIES

SHAPE = (32, 30, 24)
SUFFIX = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "label": "seg"}
AFFINE = np.array([[-1.0, 0, 0, 10], [0, -1, 0, 12], [0, 0, 1, 5], [0, 0, 0, 1]])
BAD = "case_b"


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with two clean cases."""
    generator = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(size) - size / 2 for size in SHAPE), indexing="ij"))
    radius = np.linalg.norm(grid, axis=0)
    label = np.select([radius < 3, radius < 5, radius < 7], [1, 4, 2], 0).astype(np.uint8)
    for case_id in ("case_a", BAD):
        (tmp_path / case_id).mkdir()
        for name in MODALITIES:
            image = np.where(radius < 11, generator.normal(500, 90, SHAPE), 0).astype(np.int16)
            save(tmp_path / case_id / f"{case_id}_{SUFFIX[name]}.nii.gz", image)
        save(tmp_path / case_id / f"{case_id}_seg.nii.gz", label)
    return tmp_path


def file_of(root: Path, field: str) -> Path:
    return root / BAD / f"{BAD}_{SUFFIX[field]}.nii.gz"


def check(root: Path) -> VerifyReport:
    return verify_cases(load_datalist(root), "brats2018", require=MODALITIES)


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE) -> None:
    save(path, change(np.asarray(nib.load(path).dataobj).copy()), affine)


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[16, 15, 12] = value
        return array

    return change


def undeclared(label: np.ndarray) -> np.ndarray:
    label[label == 4] = 3
    return label


def cut_in_half(root: Path) -> None:
    path = file_of(root, "flair")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_one_bit(root: Path) -> None:
    path = file_of(root, "flair")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def shift_origin(root: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 40
    rewrite(file_of(root, "t1"), lambda array: array, moved)


FAULTS: dict[str, tuple[Callable[[Path], object], str, str, str, str]] = {
    # how it is injected; code; field; file; text
    "truncated": (cut_in_half, "gzip-truncated", "flair", "flair", r"expected 46432 bytes and their checksum, got \d+"),
    "bit_flip": (flip_one_bit, "gzip-corrupt", "flair", "flair", "expected an intact gzip stream, got 'in"),
    "nan": (
        lambda root: rewrite(file_of(root, "t2"), with_value(np.nan)),
        "non-finite",
        "t2",
        "t2",
        "got 1 NaN and 0 infinite of 23040 voxels",
    ),
    "inf": (
        lambda root: rewrite(file_of(root, "t2"), with_value(-np.inf)),
        "non-finite",
        "t2",
        "t2",
        "got 0 NaN and 1 infinite of 23040 voxels",
    ),
    "all_zero": (
        lambda root: rewrite(file_of(root, "t1c"), np.zeros_like),
        "constant-modality",
        "t1c",
        "t1ce",
        "expected an image with content, got 0 in all voxels",
    ),
    "origin_shift": (shift_origin, "affine-mismatch", "affine", "t1", r"t1: expected the position of .* got 40 mm"),
    "shape_mismatch": (
        lambda root: rewrite(file_of(root, "t2"), lambda array: array[..., :-1]),
        "shape-mismatch",
        "t2",
        "t2",
        r"expected the shape \(32, 30, 24\) of t1 \(case_b_t1.nii.gz\), got \(32, 30, 23\) \(case_b_t2.nii.gz\)",
    ),
    "undeclared_label": (
        lambda root: rewrite(file_of(root, "label"), undeclared),
        "label-values",
        "label",
        "seg",
        r"expected label values \[0, 1, 2, 4\] .* got \[0, 1, 2, 3\]; not declared: 3 \(\d+ voxels\)",
    ),
}


def test_clean_data_has_no_fault(root: Path) -> None:
    report = check(root)
    assert report.ok
    assert not report.notes
    assert (report.cases, report.files) == (2, 10)
    report.raise_if_faulty()


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_rejected_and_named(root: Path, name: str) -> None:
    inject, code, field, suffix, text = FAULTS[name]
    inject(root)
    report = check(root)
    assert [fault.code for fault in report.faults] == [code]
    fault = report.faults[0]
    assert (fault.case_id, fault.field) == (BAD, field)
    assert fault.path == str(root / BAD / f"{BAD}_{suffix}.nii.gz")
    with pytest.raises(DatasetError, match=text):
        report.raise_if_faulty()


def test_missing_modality_is_rejected_and_named(root: Path) -> None:
    file_of(root, "t1c").unlink()
    report = check(root)
    assert [(f.code, f.case_id, f.field) for f in report.faults] == [("modality-missing", BAD, "t1c")]
    with pytest.raises(
        DatasetError, match=r"case case_b, field t1c: expected a file for t1c, found only t1, t2, flair"
    ):
        load_datalist(root, require=MODALITIES)


def test_missing_modality_is_only_noted_when_it_is_not_required(root: Path) -> None:
    file_of(root, "t1c").unlink()
    report = verify_cases(load_datalist(root), "brats2018")
    assert report.ok
    assert [(n.code, n.case_id, n.field) for n in report.notes] == [("modality-missing", BAD, "t1c")]


def test_empty_foreground_is_reported_and_named(root: Path) -> None:
    rewrite(file_of(root, "label"), np.zeros_like)
    report = check(root)
    assert report.ok
    note = report.notes[0]
    assert (note.code, note.case_id, note.field) == ("empty-foreground", BAD, "label")
    assert note.path == str(file_of(root, "label"))
    assert "found no labeled voxel" in str(note)


def test_all_faults_in_one_pass(root: Path) -> None:
    cut_in_half(root)
    rewrite(file_of(root, "t2"), with_value(np.nan))
    rewrite(file_of(root, "t1c"), np.zeros_like)
    shift_origin(root)
    rewrite(file_of(root, "label"), undeclared)
    report = check(root)
    found = sorted(fault.code for fault in report.faults)
    assert found == ["affine-mismatch", "constant-modality", "gzip-truncated", "label-values", "non-finite"]
    error = pickle.loads(pickle.dumps(DatasetError(report.faults)))
    assert str(error).startswith("[dataset-faults] 5 faults found:")
    assert all(isinstance(fault, DataError) and fault.case_id == BAD for fault in error.faults)


def test_truncation_of_the_trailer_only(root: Path) -> None:
    path = file_of(root, "t1")
    raw = path.read_bytes()
    assert gzip.decompress(raw)
    path.write_bytes(raw[:-8])
    assert [fault.code for fault in check(root).faults] == ["gzip-truncated"]
