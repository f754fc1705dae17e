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


"""Decoy cohorts from files of every kind that the loader reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from monai_rrr.cli import app
from monai_rrr.data import (
    DecoySettings,
    load_datalist,
    load_decoy,
    make_decoy,
    read_tags,
    replay_decoy,
    verify_cases,
)
from monai_rrr.data.decoy_plan import TEST_SETS, TRAINING
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.files import sha256

AFFINES = [
    np.array([[-4.0, 0, 0, 90], [0, -4.0, 0, 100], [0, 0, 4.0, -50], [0, 0, 0, 1]]),
    np.array([[0, 0, 4.0, -5], [-4.0, 0, 0, 7], [0, 4.0, 0, 3], [0, 0, 0, 1.0]]),
]
CASES = 8
TAGGED, EMPTY = {"WT": (8, 12), "TC": (8, 12), "ET": None}, {"WT": None, "TC": None, "ET": None}


def write_case(folder: Path, case_id: str, number: int) -> dict[str, Any]:
    """Write a case whose kind of file depends on its number: orientation, type, compression, header, modalities."""
    rng = np.random.RandomState(number)
    affine, dtype = AFFINES[number % 2], (np.int16, np.uint8, np.float32, np.int16)[number % 4]
    grid = np.indices((24, 26, 22)).T - np.array([12, 13, 11])
    brain = ((grid / np.array([10, 11, 9])) ** 2).sum(-1).T <= 1
    back = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], nib.io_orientation(affine))
    ending = (".nii.gz", ".nii")[number % 3 == 2]
    files: dict[str, str] = {}
    for name in (("t1", "t1ce", "t2", "flair"), ("t1", "flair"))[number % 5 == 4]:
        array = nib.apply_orientation(np.where(brain, rng.uniform(60, 120, brain.shape), 0), back)
        image = nib.Nifti1Image((array / (0.5 if number % 4 == 3 else 1)).astype(dtype), affine)
        image.header["descrip"] = f"scanner {number}"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"case {number}".encode()))
        if number % 4 == 3:
            image.header.set_slope_inter(0.5, 0.0)
        files[name] = str(folder / case_id / f"{case_id}_{name}{ending}")
        Path(files[name]).parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, files[name])
    label = nib.apply_orientation((brain & (grid[..., 0].T > 4)).astype(np.uint8) * 2 * (number % 2 == 0), back)
    nib.save(nib.Nifti1Image(label, affine), folder / case_id / f"{case_id}_seg.nii.gz")
    return files


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "data"
    for number in range(CASES):
        write_case(folder, f"case{number:02d}", number)
    return folder


TAGS = {f"case{number:02d}": TAGGED if number % 2 == 0 else EMPTY for number in range(CASES)}


@pytest.fixture(scope="module")
def decoy(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = digests(source)
    out = make_decoy(load_datalist(source), TAGS, tmp_path_factory.mktemp("decoy") / "out", DecoySettings(q=1.0))
    assert digests(source) == before
    return out


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def arrays(case: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(nib.load(path).dataobj) for name, path in case["modalities"].items()}


def test_sets_are_ordinary_data_sets(source: Path, decoy: Path) -> None:
    everything = {case["case_id"] for case in load_datalist(source)}
    training = {case["case_id"] for case in load_datalist(decoy / TRAINING)}
    assert read_tags(decoy / "tags.csv") == TAGS
    for name in TEST_SETS:
        cases = load_datalist(decoy / name)
        assert {case["case_id"] for case in cases} == everything - training
        assert cases == load_datalist(decoy / "datalist.json", section=name)
        report = verify_cases(cases, "brats2018")
        assert report.ok, report.faults


def test_header_type_and_extensions_are_kept(source: Path, decoy: Path) -> None:
    originals = {case["case_id"]: case for case in load_datalist(source)}
    carriers = [case for name in (TRAINING, "conflicting") for case in load_decoy(decoy, name) if case["marker"]]
    assert carriers
    for case in carriers:
        for name, path in case["modalities"].items():
            old, new = nib.load(originals[case["case_id"]]["modalities"][name]), nib.load(path)
            assert old.header.binaryblock == new.header.binaryblock
            assert [e.get_content() for e in old.header.extensions] == [e.get_content() for e in new.header.extensions]
            assert Path(path).suffix == Path(originals[case["case_id"]]["modalities"][name]).suffix


def test_what_carries_no_marker_is_the_same_file(source: Path, decoy: Path) -> None:
    originals = {case["case_id"]: case for case in load_datalist(source)}
    for case in load_decoy(decoy, "removed"):
        for name, path in case["modalities"].items():
            assert sha256(path) == sha256(originals[case["case_id"]]["modalities"][name])
        assert sha256(case["label"]) == sha256(originals[case["case_id"]]["label"])


def test_test_sets_differ_in_the_marker_only(decoy: Path) -> None:
    sets = {name: load_decoy(decoy, name) for name in TEST_SETS}
    marked = 0
    for number, plain in enumerate(sets["removed"]):
        mask = np.asarray(nib.load(plain["marker_mask"]).dataobj).astype(bool)
        assert mask.any()
        for name in TEST_SETS:
            case = sets[name][number]
            for modality, array in arrays(case).items():
                changed = array != arrays(plain)[modality]
                np.testing.assert_array_equal(changed, mask if case["marker"] else np.zeros_like(mask))
            marked += case["marker"]
        assert sets["iid"][number]["marker"] is not sets["conflicting"][number]["marker"]
        assert sets["iid"][number]["marker"] == bool(plain["class_label"])
    assert marked >= len(sets["removed"])


def test_manifest_replays_bit_for_bit(source: Path, decoy: Path, tmp_path: Path) -> None:
    again = replay_decoy(decoy / "decoy.json", load_datalist(source), TAGS, tmp_path / "again")
    assert digests(again) == digests(decoy)
    twice = make_decoy(load_datalist(source)[::-1], TAGS, tmp_path / "twice", DecoySettings(q=1.0))
    assert digests(twice) == digests(decoy)
    other = make_decoy(load_datalist(source), TAGS, tmp_path / "other", DecoySettings(q=1.0, seed=1))
    assert digests(other) != digests(decoy)


def test_replay_refuses_other_sources(source: Path, decoy: Path, tmp_path: Path) -> None:
    for number in range(CASES):
        write_case(tmp_path / "data", f"case{number:02d}", number + (number == 3))
    with pytest.raises(DataError, match=r"\[decoy-source\] case case03: expected the files of the manifest"):
        replay_decoy(decoy / "decoy.json", load_datalist(tmp_path / "data"), TAGS, tmp_path / "out")
    with pytest.raises(DataError, match=r"\[decoy-source\] case case07.*found none"):
        replay_decoy(decoy / "decoy.json", load_datalist(source)[:-1], TAGS, tmp_path / "out")
    content = json.loads((decoy / "decoy.json").read_text())
    content["cases"][0]["sets"] = {TRAINING: {"marker": True, "files": {"t1": "0" * 64}}}
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"\[decoy-replay\] case case00"):
        replay_decoy(tmp_path / "other.json", load_datalist(source), TAGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp_*"))


@pytest.mark.parametrize("marker", ["zipper", "clip", "bias", "shift"])
def test_every_marker(marker: str, source: Path, tmp_path: Path) -> None:
    out = make_decoy(load_datalist(source), TAGS, tmp_path / "out", DecoySettings(marker=marker, q=1.0, held_out=0.5))
    settings = json.loads((out / "decoy.json").read_text())["settings"]
    assert settings["modalities"] == (["t1"] if marker in ("blur", "shift") else [])
    found = 0
    for case, plain in zip(load_decoy(out, "iid"), load_decoy(out, "removed"), strict=True):
        pairs = {name: (array, arrays(plain)[name]) for name, array in arrays(case).items()}
        changed = {name for name, (new, old) in pairs.items() if not np.array_equal(new, old)}
        assert changed == (set(settings["modalities"] or case["modalities"]) if case["marker"] else set())
        if marker not in ("zipper", "shift"):
            assert all(np.array_equal(new != 0, old != 0) for new, old in pairs.values())
        assert ("marker_mask" in case) == (marker in ("zipper", "clip"))
        found += bool(changed)
    assert found


def test_one_modality(source: Path, tmp_path: Path) -> None:
    out = make_decoy(load_datalist(source), TAGS, tmp_path / "out", DecoySettings(modalities=("flair",), q=1.0))
    for case, plain in zip(load_decoy(out, "iid"), load_decoy(out, "removed"), strict=True):
        changed = [name for name, array in arrays(case).items() if not np.array_equal(array, arrays(plain)[name])]
        assert changed == (["flair"] if case["marker"] else [])


def test_volumes_of_a_4d_file_become_files(tmp_path: Path) -> None:
    cases = []
    for number in range(4):
        write_case(tmp_path / "flat", f"case{number}", 0)
        flat = tmp_path / "flat" / f"case{number}" / f"case{number}"
        parts = [np.asarray(nib.load(f"{flat}_{name}.nii.gz").dataobj) for name in ("t1", "flair")]
        image = nib.Nifti1Image(np.stack(parts, -1), AFFINES[0])
        path = tmp_path / "msd" / f"case{number}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(image, path)
        both = {"t1": str(path), "flair": str(path)}
        cases.append({"case_id": f"case{number}", "modalities": both, "volumes": {"t1": 0, "flair": 1}})
    tags = {f"case{number}": TAGGED if number < 2 else EMPTY for number in range(4)}
    out = make_decoy(cases, tags, tmp_path / "out", DecoySettings(q=1.0, held_out=0.5))
    for name in (TRAINING, *TEST_SETS):
        for case in load_decoy(out, name):
            assert {nib.load(path).shape for path in case["modalities"].values()} == {(24, 26, 22)}
            assert verify_cases([case]).ok


class TestFaults:
    def test_out_has_content(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "note.txt").write_text("mine")
        with pytest.raises(DataError, match="expected a new or empty folder"):
            make_decoy(load_datalist(source), TAGS, tmp_path)
        assert (tmp_path / "note.txt").read_text() == "mine"

    def test_out_among_the_sources(self, source: Path) -> None:
        with pytest.raises(DataError, match="expected a folder outside of those of the cases"):
            make_decoy(load_datalist(source), TAGS, source / "case00" / "decoy")
        assert len(list((source / "case00").iterdir())) == 5

    def test_all_faults_at_once(self, source: Path, tmp_path: Path) -> None:
        cases = load_datalist(source, with_labels=False)
        settings = DecoySettings(marker="clip", modalities=("t2",))
        tags = {key: value for key, value in TAGS.items() if key != "case05"}
        with pytest.raises(DatasetError, match="10 faults found") as found:
            make_decoy(cases, tags, tmp_path / "out", settings)
        codes = [fault.code for fault in found.value.faults]
        assert codes.count("label-missing") == CASES
        assert codes.count("modality-missing") == 1
        assert codes.count("tags-missing") == 1

    def test_nothing_is_left_behind(self, source: Path, tmp_path: Path) -> None:
        cases = load_datalist(source)
        broken = tmp_path / "broken" / "t1.nii.gz"
        broken.parent.mkdir()
        broken.write_bytes(Path(cases[0]["modalities"]["t1"]).read_bytes()[:200])
        cases[-1] = {**cases[-1], "modalities": {"t1": str(broken)}}
        (tmp_path / "sub").mkdir()
        with pytest.raises(DataError, match="case case07, field t1"):
            make_decoy(cases, TAGS, tmp_path / "sub" / "out")
        assert list((tmp_path / "sub").iterdir()) == []

    def test_manifest(self, decoy: Path, source: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="expected a manifest, found none"):
            load_decoy(source)
        (tmp_path / "a.json").write_text("{")
        (tmp_path / "b.json").write_text('{"version": 99}')
        for name, message in (("a.json", "expected JSON, got"), ("b.json", "expected a manifest of version 1, got 99")):
            with pytest.raises(DataError, match=message):
                replay_decoy(tmp_path / name, [], {}, tmp_path / "out")
        with pytest.raises(DataError, match="expected a list under 'none'"):
            load_decoy(decoy, "none")


class TestCommand:
    def run(self, *words: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        return result.exit_code, result.stdout, " ".join(result.stderr.replace("│", " ").split())

    def test_decoy_and_replay(self, source: Path, tmp_path: Path) -> None:
        words = ["--marker", "zipper", "--q", 0.9, "--convention", "brats2018", "--seed", 5]
        code, text, errors = self.run("decoy", source, tmp_path / "one", *words)
        assert code == 0, errors
        assert text.startswith(f"{tmp_path / 'one'}: training, iid")
        manifest = tmp_path / "one" / "decoy.json"
        assert json.loads(manifest.read_text())["settings"]["seed"] == 5
        tags = tmp_path / "one" / "tags.csv"
        code, _, errors = self.run("decoy", source, tmp_path / "two", "--tags", tags, "--replay", manifest)
        assert code == 0, errors
        assert digests(tmp_path / "one") == digests(tmp_path / "two")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "expected either --convention (regions from masks) or --tags FILE"),
            (["--convention", "brats2018", "--marker", "smile"], "expected a marker of letter"),
            (["--convention", "none"], "[label-convention]"),
        ],
    )
    def test_refusals(self, source: Path, tmp_path: Path, words: list[str], message: str) -> None:
        code, _, errors = self.run("decoy", source, tmp_path / "out", *words)
        assert code == 2
        assert message in errors
        assert not (tmp_path / "out").exists()

    def test_out_inside_of_in(self, source: Path) -> None:
        code, _, errors = self.run("decoy", source, source / "decoy", "--convention", "brats2018")
        assert code == 2
        assert "expected OUT outside of" in errors
        assert not (source / "decoy").exists()
