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
from skimage.filters import threshold_otsu

from monai_rrr.metrics import empty_mask, flair_otsu

BRAIN = np.zeros((20, 20, 12), dtype=bool)
BRAIN[2:18, 2:18, 1:11] = True


def _flair(seed=0):
    rng = np.random.default_rng(seed)
    image = np.where(BRAIN, 100 + 5 * rng.standard_normal(BRAIN.shape), 0.0)
    image[5:11, 6:12, 3:8] += 100
    return image


def _tumor():
    tumor = np.zeros(BRAIN.shape, dtype=bool)
    tumor[5:11, 6:12, 3:8] = True
    return tumor


def test_empty_mask():
    assert empty_mask((3, 4, 5)).shape == (3, 4, 5)
    assert not empty_mask((3, 4, 5)).any()


def test_finds_a_bright_block_on_tensors_and_arrays():
    assert np.array_equal(flair_otsu(_flair(), BRAIN), _tumor())
    assert np.array_equal(flair_otsu(torch.as_tensor(_flair()), torch.as_tensor(BRAIN)), _tumor())


def test_equals_plain_otsu_up_to_the_histogram():
    image = _flair() + np.random.default_rng(1).normal(0, 30, BRAIN.shape)
    plain = (image > threshold_otsu(image[BRAIN], nbins=128)) & BRAIN
    assert (flair_otsu(image, BRAIN) ^ plain).sum() < 0.03 * plain.sum()


def test_nothing_outside_the_brain():
    image = _flair()
    image[~BRAIN] = 1e6
    assert np.array_equal(flair_otsu(image, BRAIN), _tumor())
    assert np.array_equal(flair_otsu(image, BRAIN, (3.0, 3.0, 3.0), smooth_mm=0.5), _tumor())


def test_more_classes_take_the_brightest():
    image = _flair()
    image[13:16, 13:16, 3:8] -= 80
    image[12:17, 3:5, 3:8] += 50
    assert flair_otsu(image, BRAIN, classes=4).sum() == _tumor().sum()
    assert flair_otsu(image, BRAIN, classes=2).sum() > _tumor().sum()


def test_largest_component_drops_the_rest():
    image = _flair()
    image[15, 15, 9] += 100
    assert flair_otsu(image, BRAIN).sum() == _tumor().sum() + 1
    assert np.array_equal(flair_otsu(image, BRAIN, largest_component=True), _tumor())


def test_smoothing_is_in_mm():
    image = _flair()
    image[15, 15, 9] += 100
    assert flair_otsu(image, BRAIN, (1.0, 1.0, 1.0), smooth_mm=1.0)[15, 15, 9] == False  # noqa: E712
    assert flair_otsu(image, BRAIN, (9.0, 9.0, 9.0), smooth_mm=1.0)[15, 15, 9] == True  # noqa: E712


@pytest.mark.parametrize("classes", [2, 4])
def test_constant_image_gives_an_empty_mask(classes):
    found = flair_otsu(np.ones(BRAIN.shape), BRAIN, classes=classes, largest_component=True)
    assert not found.any()
    assert not flair_otsu(_flair(), np.zeros(BRAIN.shape), classes=classes).any()


def test_exception():
    with pytest.raises(ValueError, match=r"brain \(2, 2, 2\) does not match image"):
        flair_otsu(_flair(), np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match=r"classes >= 2 and smooth_mm >= 0, got 1 and 0.0"):
        flair_otsu(_flair(), BRAIN, classes=1)
    image = _flair()
    image[5, 5, 5] = np.nan
    with pytest.raises(ValueError, match="FLAIR expected finite values, got 1 NaN or Inf voxels"):
        flair_otsu(image, BRAIN)
