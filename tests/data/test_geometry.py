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

import nibabel as nib
import numpy as np
import pytest

from monai_rrr.data.geometry import checked_affine, corner_displacement
from monai_rrr.errors import DataError

SHAPE = (240, 240, 155)
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def header(sform: np.ndarray | None = AFFINE, qform: np.ndarray | None = AFFINE) -> nib.Nifti1Header:
    out = nib.Nifti1Header()
    out.set_data_shape(SHAPE)
    if sform is not None:
        out.set_sform(sform, 1)
    if qform is not None:
        out.set_qform(qform, 1, strip_shears=False)
    return out


def rotated(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return AFFINE @ turn


@pytest.mark.parametrize(("sform", "qform"), [(AFFINE, AFFINE), (AFFINE, None), (None, AFFINE)])
def test_either_form_will_do(sform: np.ndarray | None, qform: np.ndarray | None) -> None:
    np.testing.assert_allclose(checked_affine(header(sform, qform)), AFFINE, atol=1e-6)


def test_qfac_of_zero_is_one() -> None:
    right_handed = np.diag([2.0, 2.0, 3.0, 1.0])
    out = header(None, right_handed)
    out["pixdim"][0] = 0
    np.testing.assert_allclose(checked_affine(out), right_handed, atol=1e-6)
    assert out["pixdim"][0] == 0


@pytest.mark.parametrize("degrees", [0.5, 2.0])
def test_d8_forms_that_disagree(degrees: float) -> None:
    with pytest.raises(DataError, match=r"expected sform and qform to agree within 0.1 mm, got .* mm at a corner"):
        checked_affine(header(AFFINE, rotated(degrees)))
    checked_affine(header(AFFINE, rotated(0.001)))


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("srow_x", [0, 0, 0, 0], "expected an invertible sform, got the singular"),
        ("srow_y", [0, np.nan, 0, 0], "expected a finite sform, got"),
        ("pixdim", [1, 1, 1, np.nan, 0, 0, 0, 0], "expected positive voxel sizes in pixdim, got"),
        ("pixdim", [1, -1, 1, 1, 0, 0, 0, 0], "expected positive voxel sizes in pixdim, got"),
        ("pixdim", [3, 1, 1, 1, 0, 0, 0, 0], "expected a valid qform, got"),
        ("quatern_b", 4.0, "expected a valid qform, got"),
        ("qoffset_x", np.inf, "expected a finite qform, got"),
    ],
)
def test_d8_exception(field: str, value: object, text: str) -> None:
    out = header()
    out[field] = value
    with pytest.raises(DataError, match=text) as caught:
        checked_affine(out)
    assert (caught.value.code, caught.value.field) == ("affine", "affine")


@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda a: a, 0.0), (lambda a: a + np.eye(4, k=3) * 40, 40.0), (lambda a: a * [1, 1, 1.001, 1], 0.154)],
)
def test_corner_displacement(change: object, expected: float) -> None:
    assert corner_displacement(AFFINE, change(AFFINE), SHAPE) == pytest.approx(expected)  # type: ignore[operator]
