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
import pickle

import nibabel as nib
import numpy as np
import pytest

from monai_rrr.data import BrainBoxCache, make_brain_box
from monai_rrr.errors import DataError, DatasetError

SHAPE = (10, 9, 8)


def make_case(folder, case_id="a", seed=0):
    rng = np.random.default_rng(seed)
    paths = {}
    for name in ("t1", "flair"):
        array = np.zeros(SHAPE, np.int16)
        array[2:-2, 2:-2, 2:-2] = rng.integers(1, 500, (6, 5, 4))
        paths[name] = str(folder / f"{case_id}_{name}.nii.gz")
        nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])), paths[name])
    return {"case_id": case_id, "modalities": paths, "label": str(folder / "never read.nii.gz")}


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path)


@pytest.fixture
def cache(tmp_path):
    return BrainBoxCache(tmp_path / "cache", spacing=2.0)


def files(cache, suffix):
    return sorted(cache.directory.glob(f"*{suffix}"))


@pytest.mark.parametrize("spacing", [None, 2.0])
def test_get_equals_make(tmp_path, case, spacing):
    expected = make_brain_box(case, spacing)
    cache = BrainBoxCache(tmp_path / "cache", spacing)
    for box in (cache.get(case), cache.get(case), BrainBoxCache(tmp_path / "cache", spacing).get(case)):
        assert set(vars(box)) == set(vars(expected))
        for name, value in vars(expected).items():
            got = getattr(box, name)
            np.testing.assert_array_equal(got, value, err_msg=name)
            assert type(got) is type(value) or isinstance(got, np.memmap)
            assert np.asarray(got).dtype == np.asarray(value).dtype, name


def test_second_get_reads_no_source(case, cache, monkeypatch):
    cache.get(case)
    monkeypatch.setattr("monai_rrr.data.cache.make_brain_box", lambda *_: pytest.fail("built again"))
    cache.get(case)
    BrainBoxCache(cache.directory, spacing=2.0).get(case)


def test_slices_are_contiguous_and_mapped(case, cache):
    image = cache.get(case).image
    assert image.transpose(0, 3, 1, 2).flags.c_contiguous
    assert not image.flags.writeable


def test_a_header_that_python_fails_to_parse_once(case, cache, monkeypatch):
    expected = cache.get(case).image.copy()
    calls = []
    parse = np.lib.format.read_array_header_1_0

    def fails_first(file):
        calls.append(file.tell())
        if len(calls) == 1:
            parse(file)
            raise SystemError("AST constructor recursion depth mismatch (before=198, after=221)")
        return parse(file)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", fails_first)
    np.testing.assert_array_equal(cache.get(case).image, expected)
    assert len(calls) == 3
    assert calls[0] == calls[1]


def test_key_depends_on_content_parameters_and_volume_only(tmp_path, case, cache):
    key = cache.key(case)
    assert key != BrainBoxCache(tmp_path, spacing=1.5).key(case)
    assert key != cache.key({**case, "volumes": {"t1": 0}})
    assert key != cache.key({**case, "modalities": {"t1": case["modalities"]["t1"]}})
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    assert key == cache.key(make_case(moved))
    assert key != cache.key(make_case(moved, seed=1))


def test_changed_source_is_noticed(tmp_path, case, cache):
    before = cache.get(case).image.copy()
    changed = make_case(tmp_path, seed=5)
    assert changed["modalities"] == case["modalities"]
    assert not np.array_equal(before, cache.get(case).image)


@pytest.mark.parametrize("suffix", [".image.npy", ".brain.npy", ".json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_named_and_repaired(case, cache, suffix, damage):
    expected = cache.get(case).image.copy()
    (path,) = files(cache, suffix)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-7])
    elif damage == "flip":
        # In the side-car: 10, the number of voxels, becomes 11.
        content[content.index(b"10", content.index(b"source_shape")) + 1 if suffix == ".json" else -3] ^= 0x01
        path.write_bytes(content)
    else:
        path.unlink()
    fresh = BrainBoxCache(cache.directory, spacing=2.0)
    if damage == "remove" and suffix == ".json":
        box = fresh.get(case)
    else:
        with pytest.warns(RuntimeWarning, match=rf"case a is damaged and is built again: .*{path.name}"):
            box = fresh.get(case)
    np.testing.assert_array_equal(box.image, expected)


def test_damage_within_a_process_is_noticed(case, cache):
    expected = cache.get(case).image.copy()
    (path,) = files(cache, ".image.npy")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.warns(RuntimeWarning, match="does not have the checksum"):
        box = cache.get(case)
    np.testing.assert_array_equal(box.image, expected)


def test_side_car_is_plain_json(case, cache):
    cache.get(case)
    (path,) = files(cache, ".json")
    meta = json.loads(path.read_text())["content"]
    assert meta["case_id"] == "a"
    assert meta["present"] == [True, False, False, True]
    assert set(meta["files"]) == {"image", "brain"}


@pytest.mark.parametrize("workers", [0, 2])
def test_build(tmp_path, cache, workers):
    cases = [make_case(tmp_path, case_id=name, seed=i) for i, name in enumerate("abc")]
    seen = []
    cache.build(cases, workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(files(cache, ".json")) == 3


def test_build_names_all_faults(tmp_path, cache):
    cases = [make_case(tmp_path, case_id=name, seed=i) for i, name in enumerate("abc")]
    cases[0]["modalities"]["t1"] = str(tmp_path / "missing.nii.gz")
    path = cases[2]["modalities"]["flair"]
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[:-20])
    with pytest.raises(DatasetError, match="2 faults found") as caught:
        cache.build(cases)
    assert [(f.case_id, f.field) for f in caught.value.faults] == [("a", "t1"), ("c", "flair")]
    assert len(files(cache, ".json")) == 1


def test_missing_file(tmp_path, case, cache):
    case["modalities"]["t1"] = str(tmp_path / "none.nii.gz")
    with pytest.raises(DataError, match=r"case a, field t1, file .*none.nii.gz"):
        cache.get(case)


def test_case_id_can_not_leave_the_folder(tmp_path, case, cache):
    case["case_id"] = "../../x"
    assert cache.get(case).case_id == "../../x"
    assert all(cache.directory in p.parents for p in tmp_path.rglob("*.npy"))


def test_survives_pickling(case, cache):
    expected = cache.get(case).image
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).get(case).image, expected)


def test_bad_spacing(tmp_path):
    with pytest.raises(ValueError, match="spacing must be positive"):
        BrainBoxCache(tmp_path, spacing=0)
