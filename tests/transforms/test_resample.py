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
import torch
from monai.transforms import Affine, NormalizeIntensity
from scipy.ndimage import affine_transform

from monai_rrr.transforms import resample_box

SHAPE = (11, 9, 10)
SIZE = (12, 10, 7)


@pytest.fixture
def box():
    rng = np.random.default_rng(0)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[1:-1, 2:-1, 1:-2] = True
    image = (rng.integers(1, 1000, (4, *SHAPE)) * brain).astype(np.int16)
    present = np.array([True, True, False, True])
    image[2] = 0
    mean = np.array([500, 480, 0, 510], np.float32)
    return {"image": image, "brain": brain, "present": present, "mean": mean, "std": np.full(4, 280, np.float32)}


def rotation(axis, degrees):
    first, second = (a for a in range(3) if a != axis)
    matrix, angle = np.eye(3), np.radians(degrees)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def matrix(linear, offset):
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = linear, offset
    return out


CASES = {
    "identity": matrix(np.eye(3), [0, 0, 0]),
    "shift": matrix(np.eye(3), [2, -3, 4]),
    "shift far out": matrix(np.eye(3), [20, 0, 0]),
    "mirror": matrix(np.diag([-1, 1, 1]), [10, -1, 2]),
    "rotate": matrix(rotation(2, 25), [-1.5, 2.0, 2.0]),
    "rotate and mirror slices": matrix(rotation(2, -70) @ np.diag([1.1, 1.1, -1.0]), [3, 8, 7]),
    "part of a slice": matrix(np.diag([0.8, 0.9, 1.3]), [0.2, 0.1, -0.7]),
    "slices out of the box": matrix(np.diag([0.8, 0.9, 1.0]), [0.2, 0.1, 8]),
    "half a slice outside": matrix(np.eye(3), [0, 0, -0.5]),
    "tilt": matrix(rotation(0, 10) @ rotation(2, 30), [-2.0, 2.5, 1.0]),
    "tilt out of the box": matrix(rotation(1, 40), [40.0, 2.5, 1.0]),
}


def reference(box, affine, size):
    standardized = (box["image"] - box["mean"][:, None, None, None]) / box["std"][:, None, None, None]
    standardized *= box["brain"] * box["present"][:, None, None, None]

    def sample(array):
        linear, offset = affine[:3, :3], affine[:3, 3]
        return affine_transform(array, linear, offset, size, order=1, mode="grid-constant", prefilter=False)

    brain = sample(box["brain"].astype(float)) > 0.5
    return np.stack([sample(channel) for channel in standardized.astype(float)]) * brain, brain


@pytest.mark.parametrize("name", CASES)
def test_equals_standardize_then_scipy(box, name):
    image, brain = resample_box(box, CASES[name], SIZE)
    expected, expected_brain = reference(box, CASES[name], SIZE)
    assert image.shape == (4, *SIZE)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert brain.shape == (1, *SIZE)
    assert brain.dtype == torch.bool
    # A voxel that is half brain may fall on either side.
    same = brain[0].numpy() == expected_brain
    assert same.mean() > 0.99
    np.testing.assert_allclose(image.numpy() * same, expected * same, atol=2e-4)


@pytest.mark.parametrize("name", ["rotate", "part of a slice", "tilt"])
def test_equals_monai(box, name):
    affine = CASES[name]
    source = torch.as_tensor(box["image"].astype(np.float32))
    options = {"subtrahend": box["mean"], "divisor": box["std"], "nonzero": True, "channel_wise": True}
    # MONAI counts voxels from the centers of both grids.
    centered = affine.copy()
    middle, center = (np.asarray(SIZE) - 1) / 2, (np.asarray(SHAPE) - 1) / 2
    centered[:3, 3] = affine[:3, 3] + affine[:3, :3] @ middle - center
    resample = Affine(affine=centered, padding_mode="zeros", align_corners=False, image_only=True)
    expected = resample(NormalizeIntensity(**options)(source), spatial_size=SIZE).numpy()
    image, brain = resample_box(box, affine, SIZE)
    inside = brain.expand(4, *SIZE).numpy()
    np.testing.assert_allclose(image.numpy()[inside], expected[inside], atol=2e-4)


def test_memory_mapped_read_only_array(box, tmp_path):
    np.save(tmp_path / "image.npy", box["image"])
    mapped = {**box, "image": np.load(tmp_path / "image.npy", mmap_mode="r")}
    image, _ = resample_box(mapped, CASES["rotate"], SIZE)
    assert torch.equal(image, resample_box(box, CASES["rotate"], SIZE)[0])


def test_does_not_change_the_box(box):
    before = {name: value.copy() for name, value in box.items()}
    resample_box(box, CASES["identity"], SHAPE)
    for name, value in before.items():
        np.testing.assert_array_equal(box[name], value)


def test_clip(box):
    image, _ = resample_box(box, CASES["identity"], SHAPE, clip=0.5)
    assert (float(image.min()), float(image.max())) == (-0.5, 0.5)


@pytest.mark.parametrize("size", [(3, 3), (3, 0, 3)])
def test_bad_size(box, size):
    with pytest.raises(ValueError, match="size must be three positive numbers, got"):
        resample_box(box, np.eye(4), size)
