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
import json
from pathlib import Path

import pytest

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.files import atomic_write
from monai_rrr.utils.manifest import MANIFEST, verify_file, verify_manifest, write_manifest


def write(path: Path, content: bytes) -> Path:
    write_manifest(path, atomic_write(path, content))
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write(tmp_path / "model.pt", b"first" * 100)
    write(tmp_path / "other.pt", b"other" * 100)
    return tmp_path


def test_manifest_is_plain_json_that_lists_every_file(models: Path) -> None:
    content = json.loads((models / MANIFEST).read_text())
    assert list(content["files"]) == ["model.pt", "other.pt"]
    assert content["files"]["model.pt"] == hashlib.sha256(b"first" * 100).hexdigest()
    assert verify_manifest(models) == content["files"]
    verify_file(models / "model.pt")


def test_a_file_written_again_has_its_new_hash_and_one_that_is_gone_has_no_entry(models: Path) -> None:
    (models / "other.pt").unlink()
    write(models / "model.pt", b"second")
    assert verify_manifest(models) == {"model.pt": hashlib.sha256(b"second").hexdigest()}


def test_a_folder_without_weights_needs_no_manifest(tmp_path: Path) -> None:
    (tmp_path / ".gitkeep").touch()
    assert verify_manifest(tmp_path) == {}


def flip(models: Path) -> None:
    data = bytearray((models / "model.pt").read_bytes())
    data[7] ^= 1
    (models / "model.pt").write_bytes(data)


def swap(models: Path) -> None:
    (models / "model.pt").rename(models / "x")
    (models / "other.pt").rename(models / "model.pt")
    (models / "x").rename(models / "other.pt")


def truncate(models: Path) -> None:
    (models / "model.pt").write_bytes((models / "model.pt").read_bytes()[:-1])


def empty(models: Path) -> None:
    (models / "model.pt").write_bytes(b"")


def edit(models: Path) -> None:
    content = json.loads((models / MANIFEST).read_text())
    content["files"]["model.pt"] = "0" * 64
    (models / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize("tamper", [flip, swap, truncate, empty, edit])
def test_s3_other_content_is_refused(tamper: object, models: Path) -> None:
    assert callable(tamper)
    tamper(models)
    with pytest.raises(CheckpointError, match=r"checkpoint-hash.*model\.pt: expected SHA-256 [0-9a-f]{64}.*got "):
        verify_file(models / "model.pt")
    with pytest.raises(CheckpointError, match="checkpoint-hash"):
        verify_manifest(models)


def test_s3_weights_without_a_manifest_are_refused(models: Path) -> None:
    (models / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"manifest-missing.*model\.pt"):
        verify_manifest(models)


def test_s3_weights_that_the_manifest_does_not_list_are_refused(models: Path) -> None:
    (models / "new.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"manifest-entry.*new\.safetensors"):
        verify_manifest(models)


def test_s3_weights_that_are_listed_and_missing_are_named(models: Path) -> None:
    (models / "other.pt").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-missing.*other\.pt"):
        verify_manifest(models)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"files": []}',
        '{"files": {"model.pt": 3}}',
        '{"files": {"model.pt": "abc"}}',
        '{"files": {"../model.pt": "%s"}}' % ("0" * 64),
        '{"files": {"/model.pt": "%s"}}' % ("0" * 64),
        '{"files": {"a\\\\b": "%s"}}' % ("0" * 64),
        '{"files": {"": "%s"}}' % ("0" * 64),
        "[" * 100_000,
        " " * (1 << 21),
    ],
)
def test_s3_a_damaged_manifest_is_refused_and_never_overwritten(text: str, models: Path) -> None:
    (models / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="manifest-unreadable"):
        verify_file(models / "model.pt")
    with pytest.raises(CheckpointError, match="manifest-unreadable"):
        write(models / "model.pt", b"new")
    assert (models / MANIFEST).read_text() == text


def test_write_manifest_takes_only_a_sha256(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a SHA-256 of 64 hexadecimal digits, got 'md5'"):
        write_manifest(tmp_path / "model.pt", "md5")
