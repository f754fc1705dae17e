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

"""The case behind an image, whatever form it comes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from monai_rrr.data import CaseOfImaged, image_case
from monai_rrr.errors import CheckpointError, DataError
from monai_rrr.utils.tensor_file import write_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a_t1ce.nii.gz", "a_flair.nii.gz", "b_t1.nii.gz", "a_seg.nii.gz"):
        (tmp_path / name).touch()
    shape = (4, 4, 4, 2)
    for name, array in (("stack.nii.gz", np.ones(shape)), ("flat.nii", np.ones(shape[:3]))):
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / name)
    return tmp_path


def test_siblings_of_one_file(folder: Path) -> None:
    case = image_case(folder / "a_flair.nii.gz")
    assert case["case_id"] == "a"
    assert {name: Path(path).name for name, path in case["modalities"].items()} == {
        "t1c": "a_t1ce.nii.gz",
        "flair": "a_flair.nii.gz",
    }


def test_volumes_and_lists_take_the_order_given(folder: Path) -> None:
    case = image_case(folder / "stack.nii.gz", ["t2", "t1"])
    assert (case["case_id"], case["volumes"]) == ("stack", {"t2": 0, "t1": 1})
    files = [str(folder / "b_t1.nii.gz"), str(folder / "a_flair.nii.gz")]
    assert image_case(files, ["t1", "flair"])["modalities"] == dict(zip(["t1", "flair"], files, strict=True))


def test_a_folder_holds_one_case(folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "x-t2f.nii.gz").touch()
    assert image_case(one)["case_id"] == "x"
    with pytest.raises(DataError, match="expected the images of one case, got 2"):
        image_case(folder)


@pytest.mark.parametrize(
    ("name", "code"),
    [("none_t1.nii.gz", "file-missing"), ("flat.nii", "modality-unknown"), ("stack.nii.gz", "modality-unknown")],
)
def test_what_says_no_modality_is_refused(folder: Path, name: str, code: str) -> None:
    with pytest.raises(DataError, match=rf"\[{code}\].*{name}"):
        image_case(folder / name)


def test_two_files_of_one_modality(folder: Path) -> None:
    (folder / "a_t2f.nii.gz").touch()
    with pytest.raises(DataError, match=r"\[ambiguous-file\]"):
        image_case(folder / "a_t1ce.nii.gz")


def test_a_case_passes_and_a_request_becomes_one(folder: Path) -> None:
    case = {"case_id": "c", "modalities": {"t1": "x"}, "label": "y"}
    assert CaseOfImaged()(case) == case
    request: dict[str, Any] = {"image": str(folder / "b_t1.nii.gz"), "model": "m", "device": "cpu"}
    found = CaseOfImaged()(request)
    assert found["case_id"] == "b"
    assert found["request"] == {"model": "m", "device": "cpu"}


def test_weights_are_read_for_a_request(folder: Path) -> None:
    network, path = nn.Linear(2, 1), folder / "model.pt"
    write_tensors(path, {"weight": torch.full((1, 2), 7.0), "bias": torch.zeros(1)})
    load = CaseOfImaged(network=network, load_path=path)
    load({"case_id": "c", "modalities": {}})
    assert network.weight.detach()[0, 0] != 7
    load({"image": str(folder / "b_t1.nii.gz")})
    assert network.weight.detach()[0, 0] == 7
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=r"\[checkpoint-hash\]"):
        load({"image": str(folder / "b_t1.nii.gz")})
