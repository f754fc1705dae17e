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

"""Rows F1, F2, F3 and F7: random folders, headers, bytes and case ids give a named error or the right result."""

from __future__ import annotations

import gzip
import os
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_rrr.data.datalist import list_cases
from monai_rrr.data.nifti import read_verified
from monai_rrr.errors import DataError
from monai_rrr.utils.files import contained, safe_name

SHAPE = (6, 5, 4)
AFFINE = np.array([[-1.5, 0, 0, 3], [0, 1.25, 0, -4], [0, 0, 2, 5], [0, 0, 0, 1]])


def quick(examples: int) -> Any:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=checks)


@pytest.fixture(scope="module")
def image() -> bytes:
    array = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    return nib.Nifti1Image(array, AFFINE).to_bytes()


WORDS = st.sampled_from(["a", "A", "b\u00e9", "be\u0301", "x y", "1.2", "..", "\u202e", "t1", "_"])
SUFFIXES = st.sampled_from(["t1", "T1ce", "t2w", "flair", "seg", "dwi", "t1n", ""])
ENDS = st.sampled_from([".nii.gz", ".nii", ".NII.GZ", ".mha", ".nii.gz.part", ""])
NAMES = st.builds(lambda word, suffix, end: f"{word}_{suffix}{end}", WORDS, SUFFIXES, ENDS)
FOLDERS = st.lists(WORDS.filter(lambda word: word != ".."), max_size=3)
TREE = st.lists(st.tuples(FOLDERS, NAMES, st.sampled_from(["file", "file", "link", "folder", "loop"])), max_size=10)


def build(root: Path, tree: list[tuple[list[str], str, str]]) -> None:
    root.mkdir()
    for folders, name, kind in tree:
        place = root.joinpath(*folders)
        try:
            place.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                (place / name).touch(exist_ok=False)
            elif kind == "folder":
                (place / name).mkdir()
            else:
                (place / name).symlink_to(root if kind == "loop" else root.parent / "elsewhere")
        except OSError:
            continue  # the name is taken


def used_and_ignored(root: Path) -> tuple[list[str], list[str], list[str]] | None:
    code = None
    try:
        found = list_cases(root)
    except DataError as error:
        code = error.code
    if code is not None:
        assert code == "no-cases"
        return None
    used = [str(path) for case in found.cases for path in (*case["modalities"].values(), case.get("label")) if path]
    ambiguous = [fault for fault in found.faults if fault.code == "ambiguous-file"]
    ignored = [str(note.path) for note in found.notes if note.code == "ignored"]
    return used, ignored, [str(fault) for fault in ambiguous]


@quick(60)
@given(tree=TREE, order=st.randoms(use_true_random=False))
def test_f1_folders(tmp_path_factory: pytest.TempPathFactory, tree: Any, order: Any) -> None:
    home = tmp_path_factory.mktemp("f1")
    build(home / "data", tree)
    first = used_and_ignored(home / "data")
    assert first == used_and_ignored(home / "data"), "the same again"
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path: Any) -> None:
            self.entries = list(scandir(path))
            order.shuffle(self.entries)

        def __iter__(self) -> Any:
            return iter(self.entries)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __next__(self) -> Any:
            if not self.entries:
                raise StopIteration
            return self.entries.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", Shuffled)
        shuffled = used_and_ignored(home / "data")
    assert shuffled == first, "the order of the file system does not matter"
    if first is None:
        return
    used, ignored, ambiguous = first
    assert len(set(used)) == len(used)
    assert not set(used) & set(ignored)
    for path in used:
        assert Path(os.path.abspath(path)).is_relative_to(home / "data")
    below = tuple(f"{path}{os.sep}" for path in (*ignored, *used))
    for folder, _, names in os.walk(home / "data"):
        for name in names:
            path = os.path.join(folder, name)
            assert path in used or path in ignored or path.startswith(below) or any(name in text for text in ambiguous)


def independent(raw: bytes) -> tuple[tuple[int, ...], np.ndarray, np.ndarray] | None:
    """Read shape, affine and scaled data by the standard's byte offsets; None where the standard leaves a choice."""
    order = "<" if raw[:4] == b"\x5c\x01\x00\x00" else ">"
    dim = struct.unpack(f"{order}8h", raw[40:56])
    shape = tuple(dim[1 : dim[0] + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    (kind,) = struct.unpack(f"{order}h", raw[70:72])
    codes = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
    offset, slope, inter = struct.unpack(f"{order}3f", raw[108:120])
    data = np.frombuffer(raw, order + codes[kind], count=int(np.prod(shape)), offset=int(offset))
    data = data.reshape(shape, order="F").astype(np.float64)
    (sform,) = struct.unpack(f"{order}h", raw[254:256])
    if sform <= 0:
        return None
    affine = np.eye(4)
    affine[:3] = np.array(struct.unpack(f"{order}12f", raw[280:328])).reshape(3, 4)
    return shape, affine, data if slope == 0 else data * slope + inter


@quick(250)
@given(changes=st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=4))
def test_f2_header(tmp_path_factory: pytest.TempPathFactory, image: bytes, changes: list[tuple[int, int]]) -> None:
    raw = bytearray(image)
    for position, value in changes:
        raw[position] = value
    path = tmp_path_factory.getbasetemp() / "f2.nii"
    path.write_bytes(raw)
    code = None
    try:
        read = read_verified(path)
    except DataError as error:
        code = error.code
    if code is not None:
        assert code in {"affine", "volume", "file-length", "non-finite"} or code.startswith("header-")
        return
    expected = independent(bytes(raw))
    if expected is None:
        return
    shape, affine, data = expected
    assert read.array.shape == shape
    np.testing.assert_allclose(read.affine, affine)
    np.testing.assert_allclose(read.array, data, rtol=1e-5, atol=1e-30)


@quick(150)
@given(data=st.data())
def test_f3_bytes(tmp_path_factory: pytest.TempPathFactory, image: bytes, data: st.DataObject) -> None:
    raw = gzip.compress(image, mtime=0)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
    change = data.draw(st.sampled_from(["flip", "delete", "duplicate", "splice"]))
    if change == "flip":
        flipped = bytearray(raw)
        flipped[min(start, len(raw) - 1)] ^= 1 << data.draw(st.integers(0, 7))
        changed = bytes(flipped)
    elif change == "delete":
        changed = raw[:start] + raw[stop:]
    elif change == "duplicate":
        changed = raw[:stop] + raw[start:]
    else:
        changed = raw[:start] + gzip.compress(image[::-1], mtime=0)[start:stop] + raw[stop:]
    path = tmp_path_factory.getbasetemp() / "f3.nii.gz"
    path.write_bytes(changed)
    try:
        read = read_verified(path)
    except DataError:
        return
    assert gzip.decompress(changed) == image
    assert zlib.crc32(read.array.tobytes(order="F")) == zlib.crc32(image[352:])


@quick(200)
@given(one=st.text(min_size=1, max_size=300), two=st.text(min_size=1, max_size=8))
def test_f7_case_ids(tmp_path_factory: pytest.TempPathFactory, one: str, two: str) -> None:
    root = tmp_path_factory.getbasetemp()
    for case_id in (one, two, one[:1] + "\ud800", unicodedata.normalize("NFD", one)):
        name = safe_name(case_id)
        assert len(name.encode("ascii")) <= 160
        assert contained(root, name).parent == root.resolve()
        assert Path(name).name == name
        if "~" not in name:
            assert unquote(name, errors="surrogatepass") == case_id
    assert (safe_name(one) == safe_name(two)) == (one == two)
