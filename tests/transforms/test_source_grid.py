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

import numpy as np
import pytest
from scipy.ndimage import affine_transform

from monai_rrr.transforms import to_source_grid

VOLUME = np.random.default_rng(0).random((2, 5, 6, 7)).astype(np.float32)


def geometry(affine, source_affine=None, shape=(8, 9, 10)):
    source_affine = np.eye(4) if source_affine is None else source_affine
    return {"affine": affine, "source_affine": source_affine, "source_shape": np.array(shape)}


@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
def test_equals_scipy_inside(mode, order):
    # Slab axes x, y, z are the source axes z, x, y; the second runs backwards.
    affine = np.array([[0, -1.7, 0, 8.2], [0, 0, 1.3, -0.4], [1.6, 0, 0, 0.9], [0, 0, 0, 1.0]])
    back = to_source_grid(VOLUME, geometry(affine), mode)
    to_slab = np.linalg.inv(affine)
    expected = np.stack(
        [affine_transform(c, to_slab[:3, :3], to_slab[:3, 3], (8, 9, 10), order=order, mode="nearest") for c in VOLUME]
    )
    index = np.stack([*np.indices((8, 9, 10)), np.ones((8, 9, 10))])
    position = np.einsum("ij,jxyz->ixyz", to_slab, index)[:3]
    size = np.array(VOLUME.shape[1:])[:, None, None, None]
    inside = ((position >= -0.5) & (position <= size - 0.5)).all(axis=0)
    assert 0.3 < inside.mean() < 1
    np.testing.assert_allclose(back, expected * inside, atol=1e-6)


def test_one_voxel_axis():
    back = to_source_grid(np.ones((1, 1, 2, 2), np.float32), geometry(np.diag([4.0, 4, 4, 1]), shape=(3, 3, 3)))
    np.testing.assert_allclose(back, 1.0)


def test_nearest_keeps_the_kind():
    volume = (VOLUME * 3).astype(np.uint8)
    back = to_source_grid(volume, geometry(np.diag([2.0, 2, 2, 1])), "nearest")
    assert back.dtype == np.uint8
    assert set(np.unique(back)) <= {0, 1, 2}


def test_whole_voxel_shift_is_exact():
    affine = np.eye(4)
    affine[:3, 3] = [1, -2, 0]
    back = to_source_grid(VOLUME, geometry(affine))
    np.testing.assert_array_equal(back[:, 1:6, :4, :7], VOLUME[:, :, 2:])
    assert not back[:, 0].any()
    assert not back[..., 7:].any()


def test_bad_mode():
    with pytest.raises(ValueError, match="mode must be 'bilinear' or 'nearest', got 'cubic'"):
        to_source_grid(VOLUME, geometry(np.eye(4)), "cubic")


def test_bad_shape():
    with pytest.raises(ValueError, match=r"volume must have the shape CXYZ, got \(5, 6, 7\)"):
        to_source_grid(VOLUME[0], geometry(np.eye(4)))


def test_axes_that_are_not_parallel():
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(ValueError, match="the slab's axes must be parallel to those of the source file, got"):
        to_source_grid(VOLUME, geometry(turned))
