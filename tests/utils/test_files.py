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

import hashlib
import os
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_rrr.errors import DataError
from monai_rrr.utils.files import MAX_NAME, atomic_write, contained, safe_name, sha256

HOSTILE = ["../../x", "/abs", "a\x00b", "$(touch x)", ";", "a\nb", "x" * 300, "\u202eabc", "CON", "con.txt", ".", ".."]
HOSTILE += ["-rf", "a.", "~root", "C:\\x", "\udc80", "ä", "a\u0308", "lpt1", "%41"]


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    digest = atomic_write(path, b"first")
    assert path.read_bytes() == b"first"
    assert digest == hashlib.sha256(b"first").hexdigest() == sha256(path)

    def write(file: BinaryIO) -> None:
        file.write(b"sec")
        file.write(b"ond")

    assert atomic_write(path, write) == hashlib.sha256(b"second").hexdigest()
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["a.bin"]


def test_atomic_write_keeps_the_old_content_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic_write(path, b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")
def test_atomic_write_leaves_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    atomic_write(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("case_id", ["BraTS2021_01476", "BraTS-GLI-00000-000", "a.b", "Phantom_0_0003"])
def test_safe_name_leaves_usual_ids_alone(case_id: str) -> None:
    assert safe_name(case_id) == case_id


@pytest.mark.parametrize("case_id", HOSTILE)
def test_s6_hostile_ids(case_id: str, tmp_path: Path) -> None:
    name = safe_name(case_id)
    assert contained(tmp_path, name).parent == tmp_path.resolve()
    assert len(name.encode()) <= MAX_NAME
    (tmp_path / f"{name}_heatmap_flair_WT.nii.gz").touch()


def test_s6_hostile_ids_stay_different() -> None:
    assert len({safe_name(case_id) for case_id in HOSTILE}) == len(HOSTILE)
    with pytest.raises(DataError, match="expected a non-empty case id"):
        safe_name("")


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(), min_size=1), st.text(st.characters(), min_size=1))
def test_f7_injective_contained_and_reversible(first: str, second: str) -> None:
    name = safe_name(first)
    assert (name == safe_name(second)) == (first == second)
    assert len(name) <= MAX_NAME
    assert not set(name) & set('/\\:*?"<>|\0 ')
    assert name not in (".", "..")
    if "~" not in name:
        assert unquote(name, errors="surrogatepass") == first


def test_contained(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert contained(root, "a/b.txt") == (root / "a" / "b.txt").resolve()
    for path in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(DataError, match=r"expected a path inside .*root, got"):
            contained(root, path)
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="path-outside"):
        contained(root, "link/x")
