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

"""Rows D1 to D17, K3, M3, S2, S6 of the fault catalogue: nothing wrong in a data set goes unnoticed."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import Dataset
from monai.transforms import Compose, SelectItemsd
from typer.testing import CliRunner

from monai_rrr.cli import app
from monai_rrr.data import (
    BrainBoxCache,
    CaseLoader,
    LoadBrainBoxd,
    load_datalist,
    make_brain_box,
    read_verified,
    verify_cases,
    verify_dataset,
)
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.enums import MODALITIES
from monai_rrr.utils.files import safe_name


def test_clean_data_has_neither_faults_nor_notes(cohort: Any) -> None:
    report = cohort.verify(tags=cohort.tags(), require=MODALITIES)
    assert (report.faults, report.notes, report.ignored) == ((), (), ())
    assert (report.cases, report.files) == (4, 20)


def test_d1_truncated_gz(cohort: Any) -> None:
    path = cohort.file("flair")
    raw = path.read_bytes()
    for cut in (len(raw) - 1, len(raw) - 8, len(raw) // 2):
        path.write_bytes(raw[:cut])
        (fault,) = cohort.verify().faults
        assert (fault.code, fault.case_id, fault.field, fault.path) == (
            "gzip-truncated",
            "case_b",
            "flair",
            cohort.shown("flair"),
        )
        assert "bytes and their checksum, got" in fault.message


def test_d2_bit_rot_in_the_label_too(cohort: Any) -> None:
    for field in ("t2", "label"):
        path = cohort.file(field)
        raw = bytearray(path.read_bytes())
        raw[-6] ^= 1  # checksum
        path.write_bytes(raw)
    codes = [(code, field) for code, _, field, _ in cohort.faults()]
    assert codes == [("gzip-corrupt", "t2"), ("gzip-corrupt", "label")]


def test_d3_truncated_nii(cohort: Any) -> None:
    packed = cohort.file("t1")
    raw = gzip.decompress(packed.read_bytes())
    packed.unlink()
    packed.with_suffix("").write_bytes(raw[:-1])
    (fault,) = cohort.verify().faults
    assert (fault.code, fault.path) == ("file-length", cohort.shown("t1").removesuffix(".gz"))
    assert f"expected {len(raw)} bytes, got {len(raw) - 1}" in fault.message


def test_d4_what_is_no_image(cohort: Any) -> None:
    cohort.file("t1").write_bytes(b"")
    cohort.file("t1c").write_bytes(b"<!DOCTYPE html>")
    cohort.file("t2").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    cohort.file("flair").write_bytes(gzip.decompress(cohort.file("flair").read_bytes()))
    cohort.file("label").unlink()
    cohort.file("label").mkdir()
    report = cohort.verify()
    assert [(f.code, f.field) for f in report.faults] == [
        ("file-empty", "t1"),
        ("file-kind", "t1c"),
        ("file-kind", "t2"),
        ("file-kind", "flair"),
        ("file-folder", "label"),
    ]
    assert len({fault.hint for fault in report.faults}) == 5, "each one has a hint of its own"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_d4_pipes_devices_and_dead_links_do_not_hang(cohort: Any) -> None:
    for field in ("t1", "t2", "flair"):
        cohort.file(field).unlink()
    os.mkfifo(cohort.file("t1"))
    cohort.file("t2").symlink_to("/dev/zero")
    cohort.file("flair").symlink_to("nowhere.nii.gz")
    faults = cohort.verify().faults
    assert [(f.code, f.field) for f in faults] == [("file-kind", "t1"), ("file-kind", "t2"), ("file-missing", "flair")]
    assert "got a link to nowhere.nii.gz" in faults[2].message


def test_d5_missing_modalities_in_one_report(cohort: Any) -> None:
    cohort.file("t1").unlink()
    cohort.file("t2").unlink()
    cohort.file("flair", "case_a").unlink()
    assert [(code, case, field) for code, case, field, _ in cohort.faults(require=MODALITIES)] == [
        ("modality-missing", "case_a", "flair"),
        ("modality-missing", "case_b", "t1"),
        ("modality-missing", "case_b", "t2"),
    ]
    with pytest.raises(DatasetError, match=r"(?s)3 faults.*t1: \*_t1 or \*_t1n or \*_t1w"):
        load_datalist(cohort.root, require=MODALITIES)


@pytest.mark.parametrize("field", ["t2", "label"])
def test_d6_shape_mismatch(cohort: Any, field: str) -> None:
    cohort.rewrite(field, lambda array: array[..., :-1])
    (fault,) = cohort.verify().faults
    assert (fault.code, fault.field, fault.path) == ("shape-mismatch", field, cohort.shown(field))
    assert "(32, 30, 26) of t1 (case_b_t1.nii.gz), got (32, 30, 25)" in fault.message


@pytest.mark.parametrize(("shift", "rejected"), [(40, True), (0.5, True), (1e-6, False)])
@pytest.mark.parametrize("field", ["t1", "label"])
def test_d7_affine_mismatch(cohort: Any, field: str, shift: float, rejected: bool) -> None:
    affine = np.asarray(nib.load(cohort.file(field)).affine).copy()
    affine[2, 3] += shift
    cohort.rewrite(field, affine=affine)
    expected = [("affine-mismatch", "case_b", "affine", cohort.shown(field))] if rejected else []
    assert cohort.faults() == expected


@pytest.mark.parametrize(
    ("header", "code", "text"),
    [
        ({"sform_code": 0, "qform_code": 0}, "affine", "got code 0 for both"),
        ({"srow_x": [0, 0, 0, 0]}, "affine", "expected an invertible sform"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "affine", "expected a finite sform"),
        ({"srow_x": [-1, 0, 0, 1e9]}, "affine", "expected a sform within 10000 mm"),
        ({"srow_x": [-2, 0, 0, 10]}, "affine", "expected the voxel sizes .2.0, 1.0, 1.0. of the sform in pixdim"),
        ({"srow_x": [-1, 0.3, 0, 10], "pixdim": [1, 1, 1.044, 1, 0, 0, 0, 0]}, "affine", "got a sheared sform"),
        ({"pixdim": [1, 1, np.nan, 1, 0, 0, 0, 0]}, "affine", "expected positive voxel sizes"),
        ({"pixdim": [1, 1, -1, 1, 0, 0, 0, 0]}, "affine", "expected positive voxel sizes"),
        ({"qform_code": 1, "qoffset_x": 50, "quatern_d": 1, "quatern_b": 0, "quatern_c": 0}, "affine", "got 40 mm"),
        ({"xyzt_units": 1}, "header-units", "expected lengths in mm, got the unit meter"),
        ({"xyzt_units": 3}, "header-units", "got the unit micrometer"),
        ({"dim": [3, 32, 30, -26, 1, 1, 1, 1]}, "header-dim", "of positive size"),
        ({"dim": [3, 32, 0, 26, 1, 1, 1, 1]}, "header-dim", "of positive size"),
        ({"dim": [3, 960, 26, 1, 1, 1, 1, 1]}, "header-dim", "expected more than one slice along each axis"),
        ({"datatype": 32, "bitpix": 64}, "header-datatype", "got datatype 32"),
        ({"datatype": 128, "bitpix": 24}, "header-datatype", "got datatype 128"),
        ({"datatype": 1, "bitpix": 1}, "header-datatype", "got datatype 1"),
        ({"magic": b"ni1"}, "header-kind", "must be converted to one .nii.gz"),
        ({"scl_slope": np.nan}, "header-scaling", "expected finite scl_slope"),
        ({"scl_slope": 1e38}, "header-scaling", "got an overflow by scl_slope 1e[+]38"),
        ({"scl_slope": 1e-38}, "intensity-range", "expected magnitudes from 1e-20"),
    ],
)
def test_d8_header(cohort: Any, header: dict[str, Any], code: str, text: str) -> None:
    cohort.header("t2", **header)
    with pytest.raises(DatasetError, match=text) as caught:
        cohort.verify().raise_if_faulty()
    (fault,) = caught.value.faults
    field = "affine" if code in ("affine", "header-units") else "t2"
    assert (fault.code, fault.case_id, fault.field, fault.path) == (code, "case_b", field, cohort.shown("t2"))
    with pytest.raises(DataError, match=rf"\[{code}\]"):
        make_brain_box(load_datalist(cohort.root)[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["t1", "flair", "label"])
def test_d9_non_finite(cohort: Any, field: str, value: float) -> None:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[16, 15, 12] = value
        return array

    cohort.rewrite(field, change)
    assert cohort.faults() == [("non-finite", "case_b", field, cohort.shown(field))]


def one_voxel(array: np.ndarray) -> np.ndarray:
    array[:] = 0
    array[5, 5, 5] = 700
    return array


def burnt_in(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[1, 1, 1] = 1e9
    return array


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (np.zeros_like, "constant-modality"),
        (lambda array: np.full_like(array, 7), "constant-modality"),
        (one_voxel, "constant-modality"),
        (lambda array: np.repeat(array[:, :, 13:14], 26, axis=2), "replicated-slices"),
        (lambda array: np.repeat(array[16:17], 32, axis=0), "replicated-slices"),
        (lambda array: (array > 0).astype(np.uint8), "few-values"),
        (lambda array: array.astype(np.float64) * 1e40, "intensity-range"),
        (burnt_in, "intensity-outlier"),
    ],
)
def test_d10_content(cohort: Any, change: Callable[[np.ndarray], np.ndarray], code: str) -> None:
    cohort.rewrite("t1c", change)
    assert cohort.faults() == [(code, "case_b", "t1c", cohort.shown("t1c"))]


@pytest.mark.parametrize("spacing", [None, 2.0])
def test_d10_never_a_nan_after_loading(cohort: Any, spacing: float | None, tmp_path: Path) -> None:
    scattered = np.zeros((32, 30, 26), np.int16)
    scattered[::5, ::5, ::5] = np.arange(7 * 6 * 6).reshape(7, 6, 6) + 1
    cohort.rewrite("t1c", lambda _: scattered)
    case = load_datalist(cohort.root)[1]
    alone = {"case_id": "x", "modalities": {"t1c": case["modalities"]["t1c"]}}
    if spacing is not None:
        with pytest.raises(DataError, match=r"\[brain-empty\] case x, field t1c: expected a brain"):
            make_brain_box(alone, spacing)
    box = make_brain_box(case, spacing)
    assert np.isfinite(box.mean).all()
    assert np.isfinite(box.std).all()
    assert (box.std > 0).all()


@pytest.mark.parametrize("twin", ["CASE_B", "case_b"])
def test_d11_duplicate_ids(cohort: Any, twin: str) -> None:
    other = cohort.root / "elsewhere" / twin
    other.mkdir(parents=True)
    for name in MODALITIES:
        copy = cohort.rewrite(name, lambda array: array[::-1].copy(), case_id="case_c")
        shutil.move(copy, other / copy.name.replace("case_c", twin))
    faults = [fault for fault in cohort.verify().faults if fault.code == "duplicate-case"]
    assert len(faults) == 1
    assert "'case_b' in " in faults[0].message
    assert f"'{twin}' in " in faults[0].message
    with pytest.raises(DatasetError, match="duplicate-case"):
        load_datalist(cohort.root)


def test_d11_unicode_twins(cohort: Any) -> None:
    for form, source in (("NFC", "case_a"), ("NFD", "case_b")):
        name = unicodedata.normalize(form, "Mu\u0308ller")
        shutil.move(cohort.root / source, cohort.root / name)
        for path in (cohort.root / name).iterdir():
            path.rename(path.with_name(path.name.replace(source, name)))
    if len(list(cohort.root.iterdir())) < 4:
        pytest.skip("this file system has one form of Unicode names")
    assert [code for code, *_ in cohort.faults()] == ["duplicate-case"]


def stored_differently(path: Path, target: Path) -> None:
    """Write the same voxels with another type, axis order and compression."""
    image = nib.load(path)
    turned = image.as_reoriented([[2, -1], [0, 1], [1, -1]])
    copy = nib.Nifti1Image(np.asarray(turned.dataobj).astype(np.float64), turned.affine)
    target.write_bytes(gzip.compress(copy.to_bytes(), 1))


def test_d12_leakage(cohort: Any) -> None:
    shutil.move(cohort.root / "case_c", cohort.root.parent / "gone")
    other = cohort.root / "patient_9"
    other.mkdir()
    for name in MODALITIES:
        stored_differently(cohort.file(name, "case_a"), other / f"patient_9_{name}.nii.gz")
    (fault,) = cohort.verify().faults
    assert fault.code == "duplicate-content"
    assert "the same voxels in the cases case_a and patient_9" in fault.message


def test_d12_label_of_another_case(cohort: Any) -> None:
    shutil.copy(cohort.file("label", "case_a"), cohort.file("label"))
    (fault,) = cohort.verify().faults
    assert (fault.code, fault.field) == ("duplicate-content", "label")
    assert "in the cases case_a and case_b" in fault.message


@pytest.mark.parametrize("how", ["symlink", "hard link", "copy"])
def test_d12_one_file_as_two_modalities(cohort: Any, how: str) -> None:
    source, target = cohort.file("t1"), cohort.file("t2")
    target.unlink()
    {"symlink": os.symlink, "hard link": os.link, "copy": shutil.copy}[how](source, target)
    assert [(code, field) for code, _, field, _ in cohort.faults()] == [("duplicate-modality", "t2")]


def datalist(path: Path, **sections: Any) -> Path:
    path.write_text(json.dumps(sections))
    return path


def test_d12_a_case_in_two_splits(cohort: Any) -> None:
    cases = load_datalist(cohort.root)
    renamed = {**cases[2], "case_id": "case_x"}
    file = datalist(cohort.root / "list.json", training=cases[:2], validation=[cases[1]], test=cases[2:])
    with pytest.raises(DatasetError, match=r"(?s)1 fault.*split-overlap.*case case_b.*training and validation"):
        load_datalist(file)
    file = datalist(cohort.root / "list.json", training=cases, test=[renamed])
    with pytest.raises(
        DatasetError, match=r"(?s)1 fault.*split-overlap.*case case_c.*in training and test .file case_c_"
    ):
        load_datalist(file)
    report = verify_dataset(file, "brats2018", sections=("training", "test"))
    assert {"split-overlap", "duplicate-content"} == {fault.code for fault in report.faults}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": [{"case_id": "a", "case_id": "b", "modalities": {"t1": "x.nii"}}]}', "'case_id' twice"),
        ('{"training": [], "training": []}', "the key 'training' twice"),
        ('{"training": [{"case_id": NaN}]}', "NaN, which is not JSON"),
        ("{'training': []}", "expected JSON text"),
    ],
)
def test_d12_json_that_readers_understand_differently(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=rf"datalist-json.*{message}"):
        load_datalist(tmp_path / "list.json")


def test_d12_paths_outside_are_noted(cohort: Any, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    file = datalist(tmp_path / "lists" / "list.json", training=load_datalist(cohort.root))
    notes = verify_dataset(file, "brats2018").notes
    assert [note.code for note in notes] == ["path-outside"]
    assert "got 20 elsewhere" in notes[0].message


@pytest.mark.parametrize("name", ["a\0b.nii.gz", "\ud800.nii.gz", "x" * 300 + ".nii.gz"])
def test_d12_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    (fault,) = verify_cases([{"case_id": "a", "modalities": {"t1": name}}], root=tmp_path).faults
    assert fault.code in ("file-missing", "file-unreadable")
    assert str(fault).isprintable()


@pytest.mark.parametrize(
    ("case", "code"),
    [
        (5, "case-format"),
        ({}, "case-format"),
        ({"case_id": 3, "modalities": {"t1": "x.nii"}}, "case-format"),
        ({"case_id": " ", "modalities": {"t1": "x.nii"}}, "case-format"),
        ({"case_id": "a", "modalities": ["x.nii"]}, "case-format"),
        ({"case_id": "a", "modalities": {"t1": None}}, "case-format"),
        ({"case_id": "a", "modalities": {"dwi": "x.nii"}}, "modality-unknown"),
        ({"case_id": "a", "modalities": {"t1": "x.nii"}, "volumes": {"t1": True}}, "case-format"),
    ],
)
def test_cases_that_are_none(case: Any, code: str) -> None:
    assert code in [fault.code for fault in verify_cases([case]).faults]


def test_no_case_is_a_fault() -> None:
    assert [fault.code for fault in verify_cases([]).faults] == ["no-cases"]


def test_d13_4d(cohort: Any) -> None:
    cohort.rewrite("t1", lambda array: np.stack([array, array], axis=-1))
    assert cohort.faults() == [("volume", "case_b", "t1", cohort.shown("t1"))]


def test_d14_bomb(cohort: Any) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, 200))
    header["vox_offset"] = 352
    raw = gzip.compress(header.binaryblock + bytes(4)) + 200 * gzip.compress(bytes(2 << 20))
    assert len(raw) < 500_000
    cohort.file("t1").write_bytes(raw)
    (fault,) = cohort.verify().faults
    assert (fault.code, fault.field) == ("header-size", "t1")


def test_d16_junk_is_listed_and_nothing_hangs(cohort: Any) -> None:
    case = cohort.root / "case_a"
    for name in ("._case_a_t1.nii.gz", ".DS_Store", "notes.txt", "case_a_dwi.nii.gz", "case_a_t1.mha"):
        (case / name).write_bytes(b"x")
    (case / "loop").symlink_to(cohort.root)
    deep = cohort.root / "1" / "2" / "3" / "4" / "5"
    deep.mkdir(parents=True)
    report = cohort.verify()
    assert report.ok
    ignored = {item.path: item.message.partition("left out ")[2] for item in report.ignored}
    assert ignored == {
        str(Path("case_a") / "._case_a_t1.nii.gz"): "a hidden file",
        str(Path("case_a") / ".DS_Store"): "a hidden file",
        str(Path("case_a") / "notes.txt"): "a file of another kind",
        str(Path("case_a") / "case_a_t1.mha"): "a file of another kind",
        str(Path("case_a") / "case_a_dwi.nii.gz"): "a NIfTI file whose name says no modality",
        str(Path("case_a") / "loop"): "a folder that was read already under another name",
        str(Path("1", "2", "3", "4", "5")): "a folder more than 4 levels deep",
    }


def test_d16_unreadable_folder_is_a_fault(cohort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("case_b"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert cohort.faults() == [("folder-unreadable", None, None, "case_b")]


def test_d16_images_that_begin_differently_are_noted(cohort: Any) -> None:
    path = cohort.file("t1")
    path.rename(path.with_name("somebody_else_t1.nii.gz"))
    report = cohort.verify()
    assert report.ok
    assert [(note.code, note.case_id, note.path) for note in report.notes] == [("mixed-names", "case_b", "case_b")]


def test_d16_half_empty_or_turned_modality_is_noted(cohort: Any) -> None:
    def half(array: np.ndarray) -> np.ndarray:
        array[..., 13:] = 0
        return array

    cohort.rewrite("t2", half)
    report = cohort.verify()
    assert report.ok
    assert [(note.code, note.case_id, note.field) for note in report.notes] == [("coverage", "case_b", "t2")]


def damage(cohort: Any, how: str) -> str:
    if how == "truncated":
        cohort.file("t2").write_bytes(cohort.file("t2").read_bytes()[:-50])
        return "gzip-truncated"
    if how == "NaN":
        cohort.rewrite("t2", lambda array: np.where(array > 600, np.nan, array).astype(np.float32))
        return "non-finite"
    cohort.file("t2").unlink()
    return "file-missing"


def failure(loader: Any) -> DataError:
    """What a loader raises. ``pytest.raises`` would leave the iterator to the garbage collector, in an order in which
    each worker process is waited for until a time-out of 5 s."""
    try:
        list(loader)
    except DataError as error:
        return error.with_traceback(None)
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["truncated", "NaN", "missing"])
def test_d17_named_error_from_a_worker(cohort: Any, tmp_path: Path, how: str, workers: int) -> None:
    cases = load_datalist(cohort.root)
    code = damage(cohort, how)
    load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"))
    dataset = Dataset(cases, Compose([load, SelectItemsd("case_id")]))
    loader = CaseLoader(dataset, batch_size=1, num_workers=workers, multiprocessing_context="fork" if workers else None)
    error = failure(loader)
    assert f"[{code}] case case_b, field t2, file " in str(error)
    path = str(cohort.file("t2"))
    assert (type(error), error.code, error.case_id, error.field, error.path) == (DataError, code, "case_b", "t2", path)
    assert "monai_rrr error:" not in str(error)


def test_d17_through_the_loader_of_torch(cohort: Any, tmp_path: Path) -> None:
    cases = load_datalist(cohort.root)
    damage(cohort, "truncated")
    load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"))

    class Plain(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(cases)

        def __getitem__(self, index: int) -> str:
            return str(load(cases[index])["case_id"])

    loader = torch.utils.data.DataLoader(Plain(), num_workers=1, multiprocessing_context="fork")
    assert re.match(r"\[gzip-truncated\] case case_b, field t2, file .*, no checksum Hint: ", str(failure(loader)))


def test_d17_all_faults_survive_pickling(cohort: Any) -> None:
    damage(cohort, "truncated")
    report = cohort.verify()
    copy = pickle.loads(pickle.dumps(DatasetError(report.faults)))
    assert [fault.as_dict() for fault in copy.faults] == [fault.as_dict() for fault in report.faults]


def test_k3_out_of_scope(cohort: Any) -> None:
    for case_id in ("case_a", "case_b", "case_c", "case_d"):
        cohort.file("flair", case_id).unlink()
    for name in ("t1", "t1c", "t2", "label"):
        turned = np.diag([10.0, 10.0, 10.0, 1.0])
        cohort.rewrite(name, lambda array: array[:, :, 3:23], turned)
    cohort.rewrite("t1", lambda array: array - 200, turned)
    report = cohort.verify()
    assert report.ok
    notes = [(note.code, note.case_id, note.field) for note in report.notes if note.code != "coverage"]
    assert notes == [
        ("scope", "case_b", "affine"),
        ("scope", "case_b", "t1"),
        ("scope", "case_b", "t1"),
        ("modality-missing", None, "flair"),
    ]
    texts = " ".join(note.message for note in report.notes)
    for part in ("got [10.0, 10.0, 10.0]", "24 axial slices, got 20", "negative voxels", "found no flair in any of 4"):
        assert part in texts


def test_k3_notes_go_to_the_log(cohort: Any, caplog: pytest.LogCaptureFixture) -> None:
    cohort.rewrite("t1", lambda array: array - 200)
    cohort.verify().raise_if_faulty()
    assert "[scope] case case_b, field t1" in caplog.text


def test_m3_file_handles(cohort: Any, tmp_path: Path, open_files: Callable[[Path], list[str]]) -> None:
    plain = tmp_path / "a.nii"
    plain.write_bytes(gzip.decompress(cohort.file("t1").read_bytes()))
    cases = load_datalist(cohort.root)
    cache = BrainBoxCache(tmp_path / "cache")
    cache.build(cases)
    kept = [read_verified(path) for path in (plain, cohort.file("t1")) for _ in range(100)]
    boxes = [cache.get(cases[number % 3]) for number in range(200)]
    cohort.verify()
    assert open_files(tmp_path) == []
    assert len(kept) == len(boxes) == 200


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pkl", ".ts", ".pt2", ".pt", ".nii", ".nii.gz"])
def test_s2_no_pickle_is_opened(tmp_path: Path, suffix: str) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(canary),)

    path = tmp_path / f"a{suffix}"
    path.write_bytes(pickle.dumps(Payload()))
    (fault,) = verify_cases([{"case_id": "a", "modalities": {"t1": str(path)}}]).faults
    assert fault.code in ("file-suffix", "file-kind", "header-kind", "file-length")
    assert not canary.exists()


HOSTILE = ["../../x", "/abs", "a\0b", "$(touch x)", ";", "a\nb", "x" * 300, "\u202egnp.x", "CON", "..", "a/b", "\ud800"]


@pytest.mark.parametrize("case_id", HOSTILE)
def test_s6_hostile_case_ids_stay_inside(cohort: Any, tmp_path: Path, case_id: str) -> None:
    case = {**load_datalist(cohort.root)[0], "case_id": case_id}
    cache = BrainBoxCache(tmp_path / "boxes" / "inner")
    before = set(tmp_path.rglob("*"))
    assert cache.get(case).case_id == case_id
    new = set(tmp_path.rglob("*")) - before
    assert {path.parent for path in new if path.is_file()} == {cache.directory}
    error = DataError("a-code", "text", case_id=case_id, path=case_id)
    assert str(error).isprintable()
    assert error.case_id == case_id
    (fault,) = verify_cases([{"case_id": case_id, "modalities": {"t1": "x.npy"}}]).faults
    assert (fault.code, fault.case_id) == ("file-suffix", case_id)


def test_s6_names_stay_injective() -> None:
    names = [safe_name(case_id) for case_id in HOSTILE]
    assert len(set(names)) == len(names)


def command(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_all_faults_of_list_tags_and_files_in_one_pass(cohort: Any, tmp_path: Path) -> None:
    """An ambiguous name, a wrong row, a damaged file and a stray label, in one report for people and programs."""
    tags = cohort.tags()
    tags.write_text(tags.read_text().replace("case_c,", "case_c,9"))
    shutil.copy(cohort.file("t1c", "case_a"), cohort.root / "case_a" / "case_a_t1gd.nii.gz")
    damage(cohort, "truncated")
    cohort.rewrite("label", lambda array: np.where(array == 4, 3, array).astype(np.uint8), case_id="case_c")
    files = {path: path.read_bytes() for path in cohort.root.rglob("*") if path.is_file()}
    out = tmp_path / "report.json"
    result = command("verify", cohort.root, "--convention", "brats2018", "--tags", tags, "--json", out)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    report = json.loads(out.read_text())
    assert report["schema"] == "monai_rrr verify report 1"
    assert report["ok"] is False
    assert [(fault["code"], fault["case_id"]) for fault in report["faults"]] == [
        ("ambiguous-file", "case_a"),
        ("tags-row", "case_c"),
        ("gzip-truncated", "case_b"),
        ("label-values", "case_c"),
    ]
    for fault in report["faults"]:
        assert fault["code"] in result.output
        assert fault["path"] is not None
    assert {path: path.read_bytes() for path in cohort.root.rglob("*") if path.is_file()} == files, "nothing is written"
