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

import gzip
import hashlib
import itertools
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from monai_rrr.data.nifti import MAX_BYTES, read_verified
from monai_rrr.errors import DataError

SHAPE = (7, 9, 5)
AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1.2, 0, 100], [0, 0, 2.5, -70], [0, 0, 0, 1]])


def make(shape: tuple[int, ...] = SHAPE, dtype: Any = np.int16, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    return nib.Nifti1Image(array, affine)


def write(path: Path, image: nib.Nifti1Image, **header: Any) -> Path:
    """Save an image after setting raw header fields, which nibabel itself would refuse or repair."""
    raw = bytearray(image.to_bytes())
    fields = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in header.items():
        fields[name] = value
    raw[:348] = fields.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)) if path.name.lower().endswith(".gz") else bytes(raw))
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_equals_nibabel(tmp_path: Path, suffix: str, dtype: Any) -> None:
    path = write(tmp_path / f"a{suffix}", make(dtype=dtype))
    image = read_verified(path)
    raw = path.read_bytes()
    expected = nib.Nifti1Image.from_bytes(gzip.decompress(raw) if suffix != ".nii" else raw)
    np.testing.assert_array_equal(image.array, np.asarray(expected.dataobj))
    assert image.array.dtype == dtype
    np.testing.assert_array_equal(image.affine, expected.affine)
    assert image.header["dim"].tolist() == expected.header["dim"].tolist()
    assert image.sha256 == hashlib.sha256(raw).hexdigest()


def test_big_endian_scaled_and_extended(tmp_path: Path) -> None:
    swapped = nib.Nifti1Image(np.asarray(make().dataobj), AFFINE, nib.Nifti1Header(endianness=">"), dtype=np.int16)
    swapped.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"some text"))
    path = write(tmp_path / "a.nii.gz", swapped, scl_slope=0.5, scl_inter=-3)
    image, expected = read_verified(path), nib.load(path)
    assert expected.header.endianness == ">"
    assert expected.header["vox_offset"] != 352 or expected.header.extensions
    np.testing.assert_allclose(image.array, expected.get_fdata())
    assert image.array.dtype == np.float32
    plain = read_verified(write(tmp_path / "b.nii.gz", swapped, scl_slope=0, scl_inter=7))
    assert plain.array.dtype == np.int16
    assert plain.array.dtype.isnative


def test_canonical_equals_nibabel_for_all_orientations(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    for axes in itertools.permutations(("RL", "AP", "SI")):
        for codes in itertools.product(*axes):
            affine = AFFINE @ inv_ornt_aff(axcodes2ornt(codes), SHAPE)
            nib.save(make(affine=affine), path)
            image, expected = read_verified(path).canonical(), nib.as_closest_canonical(nib.load(path))
            np.testing.assert_array_equal(image.array, np.asarray(expected.dataobj))
            np.testing.assert_allclose(image.affine, expected.affine)


def test_volume_of_a_4d_file(tmp_path: Path) -> None:
    image = make((*SHAPE, 4))
    path = write(tmp_path / "a.nii.gz", image)
    for volume in range(4):
        np.testing.assert_array_equal(read_verified(path, volume).array, np.asarray(image.dataobj)[..., volume])
    with pytest.raises(DataError, match="expected a volume from 0 to 3, got 4"):
        read_verified(path, 4)
    with pytest.raises(DataError, match=r"expected a 3-D image, got 4-D with 4 volumes"):
        read_verified(path)
    single = write(tmp_path / "b.nii.gz", make((*SHAPE, 1)))
    assert read_verified(single).array.shape == SHAPE
    with pytest.raises(DataError, match=r"expected a 4-D image with volume 1, got 3-D \(7, 9, 5\)"):
        read_verified(single, 1)


def test_gzip_members_and_padding(tmp_path: Path) -> None:
    raw = make().to_bytes()
    path = tmp_path / "a.nii.gz"
    for parts in ([raw[:100], raw[100:360], raw[360:]], [b"", raw, b""]):
        path.write_bytes(b"".join(gzip.compress(part) for part in parts) + bytes(7))
        assert read_verified(path).array.shape == SHAPE
    path.write_bytes(gzip.compress(raw) + b"tail")
    with pytest.raises(DataError, match=r"gzip-trailing.*expected the end of the file, got 4 more bytes"):
        read_verified(path)
    path.write_bytes(gzip.compress(raw + b"tail"))
    with pytest.raises(DataError, match=f"file-length.*expected {len(raw)} decoded bytes, got more"):
        read_verified(path)
    path.write_bytes(gzip.compress(raw[:-4]))
    with pytest.raises(
        DataError, match=f"file-length.*expected {len(raw)} decoded bytes, got {len(raw) - 4}|truncated"
    ):
        read_verified(path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.nii.gz", b"", "file-empty.*got 0 bytes"),
        ("a.nii.gz", b"<!DOCTYPE html><html>login</html>", "file-kind.*got a web page.*the download failed"),
        ("a.nii", b"\n<html>login</html>", "file-kind.*got a web page"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-LFS pointer.*git lfs pull"),
        ("a.nii.gz", make().to_bytes(), "got uncompressed NIfTI.*rename it to .nii"),
        (
            "a.nii",
            gzip.compress(make().to_bytes(), mtime=0),
            "expected uncompressed NIfTI, got gzip.*rename it to .nii.gz",
        ),
        ("a.nii.gz", b"PK\x03\x04" * 100, "expected gzip, got another kind of file"),
        ("a.nii", b"PK\x03\x04" * 100, "header-kind.*expected a NIfTI-1 header of size 348, got"),
        ("a.nii.gz", gzip.compress(b"short", mtime=0), "file-length|gzip-truncated"),
        ("a.npy", b"x", "file-suffix.*expected a name that ends in .nii or .nii.gz, got 'a.npy'"),
        ("a.nii", nib.Nifti2Image(np.zeros(SHAPE), np.eye(4)).to_bytes(), "expected NIfTI-1, got NIfTI-2"),
    ],
)
def test_d4_other_kinds_of_file(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text):
        read_verified(tmp_path / name)


def test_d4_folder_missing_and_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").mkdir()
    with pytest.raises(
        DataError, match=r"file-folder.*case c, field t1, file .*a.nii.gz: expected a file, got a folder"
    ):
        read_verified(tmp_path / "a.nii.gz", case_id="c", field="t1")
    with pytest.raises(DataError, match=r"file-missing.*expected a file, found none"):
        read_verified(tmp_path / "b.nii.gz")
    path = write(tmp_path / "c.nii.gz", make())
    path.chmod(0)
    if not os.access(path, os.R_OK):
        with pytest.raises(DataError, match=r"file-unreadable.*got Permission denied"):
            read_verified(path)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({"dim": [3, 7, 9, 0, 1, 1, 1, 1]}, "header-dim.*of positive size, got dim"),
        ({"dim": [2, 7, 9, 1, 1, 1, 1, 1]}, "header-dim.*expected a 3-D or 4-D image"),
        ({"dim": [5, 7, 9, 5, 2, 2, 1, 1]}, "header-dim"),
        ({"dim": [-1, 7, 9, 5, 1, 1, 1, 1]}, "header-dim"),
        ({"datatype": 32}, "header-datatype.*got datatype 32"),
        ({"datatype": 16}, "header-datatype.*expected bitpix 32 for datatype 16, got 16"),
        ({"vox_offset": 0}, "header-offset.*expected vox_offset from 352, got 0"),
        ({"vox_offset": np.nan}, "header-offset"),
        ({"magic": b"ni1"}, "header-kind.*files in pairs"),
        ({"scl_slope": np.nan, "scl_inter": 0}, "header-scaling.*got nan and 0"),
        ({"scl_slope": 1, "scl_inter": np.inf}, "header-scaling.*got 1.0 and inf"),
        ({"pixdim": [1, 1, 0, 1, 1, 1, 1, 1]}, r"\[affine\] .*field affine.*positive voxel sizes"),
        ({"sform_code": 0, "qform_code": 0}, r"\[affine\].*got code 0 for both"),
    ],
)
def test_d8_header(tmp_path: Path, header: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        read_verified(write(tmp_path / "a.nii.gz", make(), **header))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_d9_non_finite(tmp_path: Path, value: float) -> None:
    image = make(dtype=np.float32)
    image.dataobj[1, 2, 3] = value
    with pytest.raises(DataError, match=r"non-finite.*field flair.*of 315 voxels") as caught:
        read_verified(write(tmp_path / "a.nii.gz", image), field="flair")
    assert ("1 NaN" in str(caught.value)) == bool(np.isnan(value))


def peak_kib() -> int:
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_d14_bomb_and_huge_header(tmp_path: Path) -> None:
    header = make().header.copy()
    header.set_data_shape((1024, 1024, 200))
    header["vox_offset"] = 352
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + 200 * gzip.compress(bytes(2 << 20)))
    assert bomb.stat().st_size < 500_000
    before = peak_kib()
    with pytest.raises(DataError, match=rf"header-size.*expected at most {MAX_BYTES} bytes, got .* declares 419430752"):
        read_verified(bomb)
    huge = write(tmp_path / "huge.nii.gz", make(), dim=[3, 4000, 4000, 2000, 1, 1, 1, 1])
    with pytest.raises(DataError, match=r"header-size.*declares 64000000352"):
        read_verified(huge)
    grown = write(tmp_path / "grown.nii.gz", make(), dim=[3, 500, 500, 300, 1, 1, 1, 1])
    with pytest.raises(DataError, match=r"file-length|gzip-truncated"):
        read_verified(grown)
    assert peak_kib() - before < 100 << 10


def test_m3_no_handle_stays_open(tmp_path: Path, open_files: Callable[[Path], list[str]]) -> None:
    paths = [write(tmp_path / name, make()) for name in ("a.nii", "a.nii.gz")]
    with paths[0].open("rb"):
        assert open_files(tmp_path) == [str(paths[0])]
    images = [read_verified(path) for path in paths * 20]
    assert open_files(tmp_path) == []
    assert len(images) == 40


def test_d17_error_survives_pickling(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_verified(tmp_path / "x.nii.gz", case_id="a", field="t2")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is DataError
    assert copy.as_dict() == caught.value.as_dict()


def test_f2_header_bytes(tmp_path: Path) -> None:
    """1 to 4 random header bytes: a named error, or what nibabel reads."""
    raw, generator = make().to_bytes(), np.random.default_rng(0)
    path, read = tmp_path / "a.nii", 0
    for _ in range(250):
        changed = bytearray(raw)
        for position in generator.integers(0, 348, generator.integers(1, 5)):
            changed[position] = generator.integers(0, 256)
        path.write_bytes(changed)
        try:
            image = read_verified(path)
        except DataError:
            continue
        expected = nib.load(path)
        np.testing.assert_allclose(image.array, np.squeeze(expected.get_fdata()), rtol=1e-6)
        np.testing.assert_allclose(image.affine, expected.affine)
        read += 1
    assert read > 60
