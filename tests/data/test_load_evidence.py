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


"""Marks of where evidence may lie, on the grid of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_rrr.data import LoadEvidenced
from monai_rrr.errors import DataError

SHAPE = (12, 10, 8)


def mark(path: Path, part: Any, affine: np.ndarray[Any, Any] | None = None, shape: tuple[int, ...] = SHAPE) -> str:
    array = np.zeros(shape, np.uint8)
    array[part] = 3
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def sample(evidence: dict[str, str], affine: torch.Tensor | None = None) -> dict[str, Any]:
    image = MetaTensor(torch.zeros(4, *SHAPE), affine=torch.eye(4).double() if affine is None else affine)
    return {"case_id": "x", "image": image, "evidence": evidence}


def test_allowed_and_not(tmp_path: Path) -> None:
    allowed = mark(tmp_path / "yes.nii.gz", np.s_[2:9, :, :])
    forbidden = mark(tmp_path / "no.nii.gz", np.s_[5, 5, 5])
    load = LoadEvidenced(reach=0.0)
    yes = load(sample({"allowed": allowed}))["evidence"]
    assert yes.shape == (1, *SHAPE)
    assert yes.dtype == torch.uint8
    assert yes[0, 2:9].all()
    assert yes.sum() == yes[0, 2:9].numel()
    no = load(sample({"not_allowed": forbidden}))["evidence"]
    assert no.sum() == no.numel() - 1
    both = load(sample({"not_allowed": forbidden, "allowed": allowed}))["evidence"]
    assert torch.equal(both, yes * no)


def test_what_is_forbidden_reaches_some_millimeters(tmp_path: Path) -> None:
    forbidden = mark(tmp_path / "no.nii.gz", np.s_[5, 5, 4], np.diag([1.0, 1.0, 2.0, 1.0]))
    data = sample({"not_allowed": forbidden}, torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])).double())
    open_ = LoadEvidenced(reach=2.0)(data)["evidence"][0]
    assert (open_[:, 5, 4] == 0).nonzero()[:, 0].tolist() == [3, 4, 5, 6, 7]
    assert (open_[5, 5] == 0).nonzero()[:, 0].tolist() == [3, 4, 5]


def test_marks_lie_where_they_were_drawn_on_another_grid(tmp_path: Path) -> None:
    """A file with the first axis turned around, and twice as coarse an image."""
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = SHAPE[0] - 1
    path = mark(tmp_path / "yes.nii.gz", np.s_[:4], flipped)
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])).double()
    affine[:3, 3] = 0.5
    image = MetaTensor(torch.zeros(4, 6, 5, 4), affine=affine)
    found = LoadEvidenced()({"case_id": "x", "image": image, "evidence": {"allowed": path}})["evidence"]
    assert found[0, :, 0, 0].tolist() == [0, 0, 0, 0, 1, 1]


def test_without_marks_nothing_is_added() -> None:
    data = {"case_id": "x", "image": torch.zeros(4, 2, 2, 2)}
    assert LoadEvidenced()(data) == data


def test_an_empty_mark_forbids_nothing(tmp_path: Path) -> None:
    path = mark(tmp_path / "no.nii.gz", np.s_[:0])
    assert LoadEvidenced()(sample({"not_allowed": path}))["evidence"].all()


def test_exception(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reach must be at least 0 mm, got -1"):
        LoadEvidenced(reach=-1)
    with pytest.raises(DataError, match="evidence allowed") as caught:
        LoadEvidenced()(sample({"allowed": str(tmp_path / "none.nii.gz")}))
    assert caught.value.case_id == "x"
