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

"""Rows D15, T14 and H1: files that change, caches that lie, names that leak."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.data import Dataset
from monai.transforms import Compose, SelectItemsd
from typer.testing import CliRunner

from monai_rrr.cli import app
from monai_rrr.data import (
    BrainBoxCache,
    CaseLoader,
    LoadBrainBoxd,
    VerifiedCache,
    load_datalist,
    make_brain_box,
    pseudonymize,
    read_tags,
    verify_cases,
)
from monai_rrr.data.stamp import FileStamp
from monai_rrr.errors import DataError


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as old at once: tests can't wait for two seconds."""
    monkeypatch.setattr("monai_rrr.data.stamp.SETTLED_NS", -1)


def other_content(cohort: Any, field: str = "t2") -> Path:
    """Write another intact image under the old name, of the same size and times as far as a program can."""
    path = cohort.file(field)
    before = path.stat()
    raw = path.read_bytes()
    plain = bytearray(gzip.decompress(raw))
    plain[-20:] = plain[-21:-1]
    plain[400] += 1
    path.write_bytes(gzip.compress(bytes(plain)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["replaced", "gone"])
def test_d15_file_changes_after_it_was_verified(cohort: Any, tmp_path: Path, how: str, workers: int) -> None:
    cases = load_datalist(cohort.root)
    hashes = verify_cases(cases, "brats2018").hashes
    load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache", hashes=hashes))
    context = "fork" if workers else None
    dataset = Dataset(cases, Compose([load, SelectItemsd("case_id")]))
    loader = CaseLoader(dataset, num_workers=workers, multiprocessing_context=context)
    assert [batch["case_id"][0] for batch in loader] == ["case_a", "case_b", "case_c", "case_d"]
    if how == "replaced":
        other_content(cohort)
    else:
        cohort.file("t2").unlink()
    code = {"replaced": "file-changed", "gone": "file-missing"}[how]
    with pytest.raises(DataError, match=rf"\[{code}\] case case_b, field t2, file {cohort.file('t2')}: "):
        list(loader)


def test_d15_label_changes_after_it_was_verified(cohort: Any, tmp_path: Path) -> None:
    cases = load_datalist(cohort.root)
    cache = BrainBoxCache(tmp_path / "cache", hashes=verify_cases(cases, "brats2018").hashes)
    load = LoadBrainBoxd(cache, with_label=True)
    load(cases[1])
    cohort.rewrite("label", lambda array: np.where(array == 1, 2, array).astype(np.uint8))
    with pytest.raises(DataError, match=r"\[file-changed\] case case_b, field label, .*expected the file with SHA-256"):
        load(cases[1])


def test_d15_file_that_changes_while_it_is_read(cohort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between hashing and decoding: the new content must not be stored under the name of the old one."""
    cache = BrainBoxCache(tmp_path / "cache")

    def late(*arguments: Any) -> Any:
        other_content(cohort)
        return make_brain_box(*arguments)

    monkeypatch.setattr("monai_rrr.data.cache.make_brain_box", late)
    with pytest.raises(DataError, match=r"\[file-changed\] case case_b, field t2"):
        cache.get(load_datalist(cohort.root)[1])
    assert not list(tmp_path.glob("cache/*"))


def boxes(cache: BrainBoxCache, cohort: Any) -> np.ndarray:
    return np.array(cache.get(load_datalist(cohort.root)[1]).image)


def test_t14_source_changed_within_one_process(cohort: Any, tmp_path: Path, settled: None) -> None:
    cache = BrainBoxCache(tmp_path / "cache")
    before = boxes(cache, cohort)
    other_content(cohort)
    after = boxes(cache, cohort)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(after, make_brain_box(load_datalist(cohort.root)[1]).image)


def test_t14_a_fresh_file_is_not_trusted_by_its_times(cohort: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Two writes within one tick of the clock of a file system can have one stamp."""
    cache = BrainBoxCache(tmp_path / "cache")
    before = boxes(cache, cohort)
    stamp = FileStamp.of(cohort.file("t2"))
    other_content(cohort)
    frozen = classmethod(
        lambda cls, path: stamp if Path(path) == cohort.file("t2") else FileStamp(*os.stat(path)[6:10])
    )
    monkeypatch.setattr(FileStamp, "of", frozen)
    assert not np.array_equal(before, boxes(cache, cohort))


def test_t14_parameters_or_code_changed(cohort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = load_datalist(cohort.root)[1]
    cache = BrainBoxCache(tmp_path / "cache", spacing=2.0)
    assert cache.get(case).image.shape != BrainBoxCache(tmp_path / "cache").get(case).image.shape
    monkeypatch.setattr("monai_rrr.data.cache.source_digest", lambda *modules: "other code")
    assert BrainBoxCache(tmp_path / "cache", spacing=2.0).key(case) != cache.key(case)


@pytest.mark.parametrize("suffix", [".image.npy", ".brain.npy", ".json"])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"", lambda raw: b"\xff" + raw[1:]])
def test_t14_damaged_cache(cohort: Any, tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    cache = BrainBoxCache(tmp_path / "cache")
    before = boxes(cache, cohort)
    (path,) = cache.directory.glob(f"*{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(RuntimeWarning, match=rf"case case_b is damaged and is built again: .*{path.name}"):
        np.testing.assert_array_equal(boxes(cache, cohort), before)
    np.testing.assert_array_equal(boxes(BrainBoxCache(cache.directory), cohort), before)


def test_t14_folder_that_can_not_be_written(cohort: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        DataError, match=r"\[cache-unwritable\] case case_b, file .*cache: expected a folder to write to"
    ):
        boxes(BrainBoxCache(tmp_path / "cache"), cohort)


@pytest.fixture
def verified(cohort: Any, tmp_path: Path, settled: None) -> Path:
    """Return the file that remembers that the data set is intact."""
    path = tmp_path / "verified.json"
    assert cohort.verify(cache=path).unchanged == 0
    assert cohort.verify(cache=path).unchanged == 20
    return path


def test_verified_again_without_reading(cohort: Any, verified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = cohort.verify(tags=cohort.tags())
    monkeypatch.setattr("monai_rrr.data.decode.read_bytes", lambda *_: pytest.fail("was read"))
    monkeypatch.setattr("monai_rrr.data.verified_cache.sha256", lambda *_: pytest.fail("was read"))
    again = cohort.verify(cache=verified, tags=cohort.root.parent / "tags.csv")
    assert again.unchanged == 20
    left = {"seconds", "unchanged"}
    assert {k: v for k, v in again.as_dict().items() if k not in left} == {
        k: v for k, v in fresh.as_dict().items() if k not in left
    }


def test_other_questions_to_the_same_files(cohort: Any, verified: Path) -> None:
    """Convention, tags and required modalities are asked anew: only what was measured is remembered."""
    report = cohort.verify("msd", cache=verified)
    assert report.unchanged == 20
    assert {fault.code for fault in report.faults} == {"label-values"}


@pytest.mark.parametrize("change", ["content", "content, old times", "bit rot", "cut", "gone", "swapped"])
def test_changes_are_noticed(cohort: Any, verified: Path, change: str) -> None:
    path = cohort.file("t2")
    if change == "content":
        cohort.rewrite("t2", lambda array: array * np.nan)
    elif change == "content, old times":
        times = path.stat()
        cohort.rewrite("t2", lambda array: array * np.nan)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "bit rot":
        times, raw = path.stat(), bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif change == "gone":
        path.unlink()
    else:
        shutil.copy2(cohort.file("t1", "case_a"), path)
    report = cohort.verify(cache=verified, require=["t2"])
    assert "case_b" in {fault.case_id for fault in report.faults}
    assert report.unchanged <= 15


def test_what_stamps_can_not_see_and_rehash_can(cohort: Any, verified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses a bit without a write leaves size, times and inode as they were."""
    stamps = {str(path): FileStamp.of(path) for path in cohort.root.rglob("*.nii.gz")}
    raw = bytearray(cohort.file("t2").read_bytes())
    raw[len(raw) // 2] ^= 1
    cohort.file("t2").write_bytes(raw)
    monkeypatch.setattr(FileStamp, "of", classmethod(lambda cls, path: stamps[str(path)]))
    assert cohort.verify(cache=verified).ok
    report = cohort.verify(cache=verified, rehash=True)
    assert [(fault.case_id, fault.path) for fault in report.faults] == [("case_b", cohort.shown("t2"))]
    assert report.unchanged == 15


def test_moved_data_is_known_by_its_content(cohort: Any, verified: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort.root, tmp_path / "copy")
    cases = load_datalist(tmp_path / "copy")
    assert verify_cases(cases, "brats2018", cache=verified).unchanged == 20


@pytest.mark.parametrize("damage", ["cut", "empty", "binary", "edited", "other format", "a folder"])
def test_damaged_memory_is_never_trusted(cohort: Any, verified: Path, damage: str) -> None:
    cohort.rewrite("t2", np.zeros_like)
    text = verified.read_text()
    if damage == "edited":
        content = json.loads(text)
        for facts in content["content"]["facts"].values():
            facts["label"]["counts"] = {"0": 1}
        text = json.dumps(content)
    elif damage == "other format":
        text = text.replace("verified 1", "verified 0")
    if damage == "a folder":
        verified.unlink()
        verified.mkdir()
    else:
        verified.write_bytes({"cut": text[:-9], "empty": "", "binary": "\xff\0"}.get(damage, text).encode("latin-1"))
    report = cohort.verify(cache=verified)
    assert report.unchanged == 0
    assert [fault.code for fault in report.faults] == ["constant-modality"]
    assert [note.code for note in report.notes] == ([] if damage == "other format" else ["cache-damaged"])


def test_only_intact_cases_are_remembered(cohort: Any, tmp_path: Path, settled: None) -> None:
    cohort.rewrite("t2", np.zeros_like)
    for _ in range(2):
        report = cohort.verify(cache=tmp_path / "verified.json")
        assert [fault.code for fault in report.faults] == ["constant-modality"]
    assert report.unchanged == 15


def test_files_written_just_now_are_hashed_again(cohort: Any, tmp_path: Path) -> None:
    cohort.verify(cache=tmp_path / "verified.json")
    assert json.loads((tmp_path / "verified.json").read_text())["content"]["files"] == {}
    now = time.time_ns()
    assert not FileStamp(1, now - 10**9, now - 10**9, 1).settled(now)
    assert FileStamp(1, now - 3 * 10**9, now - 3 * 10**9, 1).settled(now)


def command(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_verify_command_remembers(cohort: Any, settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_RRR_CACHE", str(tmp_path / "home"))
    words = ("verify", cohort.root, "--convention", "brats2018")
    known = "20 files read, 20 of them unchanged since they were found intact"
    assert known not in command(*words).output
    assert known in command(*words).output
    assert known in command(*words, "--rehash").output
    assert known not in command(*words, "--no-cache").output
    (path,) = (tmp_path / "home" / "verified").iterdir()
    assert "case_" not in path.read_text()
    assert VerifiedCache(path).problem is None


SECRETS = ("DOE", "JOHN", "MRN123456", "1970-01-01")


@pytest.fixture
def patients(cohort: Any) -> Path:
    """Return the tags; names of patients are in folders, file names and headers, and one file is damaged."""
    (cohort.root / "case_b").rename(cohort.root / "DOE^JOHN_MRN123456")
    for path in sorted((cohort.root / "DOE^JOHN_MRN123456").iterdir()):
        image = nib.load(path)
        image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
        image.header["descrip"], image.header["aux_file"] = b"DOE^JOHN 1970-01-01", b"MRN123456"
        image.header["intent_name"] = b"DOE^JOHN"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JOHN"))
        nib.save(image, path.with_name(path.name.replace("case_b", "DOE^JOHN_1970-01-01")))
        path.unlink()
    return cohort.tags()


def test_h1_no_name_of_a_patient_anywhere(cohort: Any, patients: Path, tmp_path: Path, caplog: Any) -> None:
    work, key = tmp_path / "work", tmp_path / "safe" / "key.csv"
    result = command("pseudonymize", cohort.root, work / "data", "--key", key, "--tags", patients)
    assert result.exit_code == 0, result.output
    assert "DOE^JOHN" in key.read_text()
    caplog.set_level(logging.DEBUG)
    tags = work / "data" / "tags.csv"
    cases = load_datalist(work / "data" / "datalist.json")
    bad = next(case for case in cases if case["case_id"] in next(x for x in key.read_text().splitlines() if "DOE" in x))
    texts = [str(cases), str(read_tags(tags))]
    report = verify_cases(cases, "brats2018", read_tags(tags), cache=work / "verified.json")
    assert report.ok
    cache = BrainBoxCache(work / "boxes")
    box = LoadBrainBoxd(cache, read_tags(tags), with_label=True)(bad)
    texts += [str(box), json.dumps(report.as_dict())]
    path = Path(bad["modalities"]["t1"])
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw[:-3])
    words = ("verify", work / "data" / "datalist.json", "--convention", "brats2018", "--tags", tags)
    failed = command(*words, "--json", work / "report.json")
    assert failed.exit_code == 2
    texts.append(failed.output)
    with pytest.raises(DataError, match=bad["case_id"]) as caught:
        cache.get(bad)
    texts += [repr(caught.value), caplog.text]
    images = set(work.rglob("*.nii.gz"))
    for path in work.rglob("*"):
        texts.append(str(path.relative_to(tmp_path)))
        if path.is_file() and path not in images:
            texts.append(path.read_bytes().decode("latin-1"))
    assert [secret for secret in SECRETS for text in texts if secret in text] == []


def test_h1_pseudonyms_are_random_and_stay(cohort: Any, tmp_path: Path) -> None:
    cases, key = load_datalist(cohort.root), tmp_path / "key.csv"
    first = pseudonymize(cases[:2], tmp_path / "one", key)
    again = pseudonymize(cases, tmp_path / "two", key)
    assert {case["case_id"] for case in first} < {case["case_id"] for case in again}
    other = pseudonymize(cases, tmp_path / "three", tmp_path / "other.csv")
    assert not {case["case_id"] for case in other} & {case["case_id"] for case in again}
    assert os.name == "nt" or key.stat().st_mode & 0o077 == 0
    assert verify_cases(again, "brats2018").ok
    with pytest.raises(ValueError, match="expected a key outside the folder"):
        pseudonymize(cases, tmp_path / "two", tmp_path / "two" / "key.csv")
    key.write_text("something else")
    with pytest.raises(DataError, match=r"\[pseudonym-key\]"):
        pseudonymize(cases, tmp_path / "two", key)
