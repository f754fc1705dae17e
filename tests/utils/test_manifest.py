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
from monai_rrr.utils.manifest import manifest_path, verify_file, verify_manifests, write_manifest


def write(path: Path, content: bytes) -> Path:
    write_manifest(path, atomic_write(path, content))
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write(tmp_path / "model.pt", b"first" * 100)
    write(tmp_path / "other.pt", b"other" * 100)
    return tmp_path


def test_manifest_is_plain_json_about_one_file(models: Path) -> None:
    content = json.loads((models / "model.pt.json").read_text())
    digest = hashlib.sha256(b"first" * 100).hexdigest()
    assert (content["file"], content["sha256"]) == ("model.pt", [digest])
    assert list(verify_manifests(models)) == ["model.pt", "other.pt"]
    assert verify_file(models / "model.pt") == digest


def test_a_file_written_again_has_its_new_hash(models: Path) -> None:
    write(models / "model.pt", b"second")
    assert verify_file(models / "model.pt") == hashlib.sha256(b"second").hexdigest()


def test_a_folder_without_weights_needs_no_manifest(tmp_path: Path) -> None:
    (tmp_path / ".gitkeep").touch()
    (tmp_path / "run.json").write_text("{}")
    assert verify_manifests(tmp_path) == {}


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
    content = json.loads((models / "model.pt.json").read_text())
    content["sha256"] = ["0" * 64]
    (models / "model.pt.json").write_text(json.dumps(content))


@pytest.mark.parametrize("tamper", [flip, swap, truncate, empty, edit])
def test_s3_other_content_is_refused(tamper: object, models: Path) -> None:
    assert callable(tamper)
    tamper(models)
    with pytest.raises(CheckpointError, match=r"checkpoint-hash.*model\.pt: expected the SHA-256.*got [0-9a-f]{12}"):
        verify_file(models / "model.pt")
    with pytest.raises(CheckpointError, match="checkpoint-hash"):
        verify_manifests(models)


def test_s3_weights_without_a_manifest_are_refused(models: Path) -> None:
    (models / "model.pt.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest-missing.*model\.pt"):
        verify_manifests(models)


def test_s3_a_manifest_of_another_file_is_refused(models: Path) -> None:
    (models / "other.pt.json").replace(models / "model.pt.json")
    with pytest.raises(CheckpointError, match=r"manifest-unreadable.*manifest of model\.pt, got another"):
        verify_file(models / "model.pt")


def test_s3_weights_that_have_a_manifest_and_are_missing_are_named(models: Path) -> None:
    (models / "other.pt").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-missing.*other\.pt"):
        verify_manifests(models)


FRAME = '{"format": "monai_rrr manifest", "file": "model.pt", "sha256": %s}'


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", "{}", "[" * 100_000, " " * (1 << 21)),
        *(FRAME % digests for digests in ("[]", '"abc"', '["abc"]', "[3]")),
        (FRAME % f'["{"0" * 64}"]').replace("model.pt", "../model.pt"),
    ],
)
def test_s3_a_damaged_manifest_is_refused(text: str, models: Path) -> None:
    manifest_path(models / "model.pt").write_text(text)
    with pytest.raises(CheckpointError, match="manifest-unreadable"):
        verify_file(models / "model.pt")


def test_write_manifest_takes_only_a_sha256(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a SHA-256 of 64 hexadecimal digits, got 'md5'"):
        write_manifest(tmp_path / "model.pt", "md5")
