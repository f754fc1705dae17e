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

"""Truncations and single bit flips of a compressed image: whatever changes a decoded byte is rejected."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_rrr.data.nifti import read_verified
from monai_rrr.errors import DataError

SHAPE = (32, 32, 24)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(3)
    image = np.zeros(SHAPE, np.int16)
    image[4:28, 4:28, 3:21] = generator.normal(800, 150, (24, 24, 18))
    path = tmp_path_factory.mktemp("fuzz") / "clean.nii.gz"
    nib.save(nib.Nifti1Image(image, np.eye(4)), path)
    return path


def rejected(path: Path) -> bool:
    try:
        read_verified(path, case_id="a", field="t1")
    except DataError as error:
        fault = error
    else:
        return False
    assert fault.path == str(path)
    assert (fault.case_id, fault.field) in {("a", "t1"), ("a", "affine")}
    return True


def decoded(raw: bytes) -> bytes | None:
    """Decode as far as possible without any check, as a reader does that ignores the trailer."""
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error):
        return None


def test_d1_truncated_gz(clean: Path, tmp_path: Path) -> None:
    raw = clean.read_bytes()
    cuts = {*np.random.default_rng(0).integers(1, len(raw), 100).tolist(), *range(len(raw) - 40, len(raw))}
    path = tmp_path / "cut.nii.gz"
    for cut in sorted(cuts):
        path.write_bytes(raw[:cut])
        with pytest.raises(DataError, match=r"gzip-truncated.*expected \d+ bytes.*got|file-kind"):
            read_verified(path)


def test_d2_bit_flips(clean: Path, tmp_path: Path) -> None:
    raw = clean.read_bytes()
    reference = gzip.decompress(raw)
    path = tmp_path / "flip.nii.gz"
    harmless = accepted = 0
    for position in np.random.default_rng(1).integers(0, 8 * len(raw), 200).tolist():
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        same = decoded(bytes(flipped)) == reference
        harmless += same
        if not rejected(path):
            accepted += 1
            assert same, f"bit {position} changes the image, but the file was accepted"
    assert accepted <= harmless


def test_d2_flips_of_the_first_and_last_bytes(clean: Path, tmp_path: Path) -> None:
    raw = clean.read_bytes()
    reference = gzip.decompress(raw)
    path = tmp_path / "flip.nii.gz"
    for position in [*range(8 * 24), *range(8 * (len(raw) - 10), 8 * len(raw))]:
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        assert rejected(path) or decoded(bytes(flipped)) == reference


@pytest.mark.parametrize("level", range(1, 10, 2))
def test_d2_no_false_alarm(tmp_path: Path, level: int) -> None:
    generator = np.random.default_rng(level)
    path = tmp_path / "clean.nii.gz"
    for dtype in (np.uint8, np.int16, np.float32, np.float64):
        image = generator.normal(100, 20, SHAPE).astype(dtype)
        path.write_bytes(gzip.compress(nib.Nifti1Image(image, np.eye(4)).to_bytes(), level))
        np.testing.assert_array_equal(read_verified(path).array, image)


def test_d3_truncated_nii(clean: Path, tmp_path: Path) -> None:
    raw = gzip.decompress(clean.read_bytes())
    path = tmp_path / "cut.nii"
    path.write_bytes(raw)
    assert read_verified(path).array.shape == SHAPE
    for cut in np.random.default_rng(2).integers(1, len(raw), 50).tolist():
        path.write_bytes(raw[:cut])
        with pytest.raises(DataError, match=rf"file-length.*expected .*\d+ bytes, got {cut}"):
            read_verified(path)


def test_f3_splices(clean: Path, tmp_path: Path) -> None:
    raw = clean.read_bytes()
    reference = gzip.decompress(raw)
    path = tmp_path / "splice.nii.gz"
    generator = np.random.default_rng(4)
    for _ in range(60):
        start, stop, target = sorted(generator.integers(1, len(raw), 3).tolist())
        for changed in (raw[:start] + raw[stop:], raw[:stop] + raw[start:], raw[:target] + raw[start:stop]):
            path.write_bytes(changed)
            assert rejected(path) or decoded(changed) == reference
