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
from skimage.filters import threshold_otsu

from monai_rrr.metrics import apply_threshold, label_free_threshold

SPACING = (2.0, 3.0, 5.0)


def _bump(shape=(12, 12, 8), height=0.9, floor=0.05, seed=0):
    rng = np.random.default_rng(seed)
    heatmap = floor + 0.02 * rng.random(shape)
    heatmap[3:8, 4:9, 2:5] += height - floor - 0.02 * rng.random((5, 5, 3))
    return heatmap


def test_apply_is_strictly_greater():
    heatmap = np.array([0.2, 0.5, 0.50001, 0.9]).reshape(1, 4, 1)
    assert apply_threshold(heatmap, 0.5).ravel().tolist() == [False, False, True, True]


def test_apply_keeps_brain_only():
    brain = np.zeros((12, 12, 8))
    brain[:5] = 1
    mask = apply_threshold(_bump(), 0.5, brain=brain)
    assert mask.sum() == 2 * 5 * 3
    assert not mask[5:].any()


def test_apply_clears_slices_by_whole_area():
    heatmap = np.zeros((6, 6, 4))
    heatmap[0, 0, 0] = heatmap[5, 5, 0] = 1.0  # two parts, 12 mm² together
    heatmap[0, 0, 1] = 1.0  # 6 mm²
    heatmap[:3, 0, 2] = 1.0  # 18 mm²
    areas = [
        apply_threshold(heatmap, 0.5, area, SPACING).sum(axis=(0, 1)).tolist() for area in (0.0, 6.0, 6.1, 12.0, 13.0)
    ]
    assert areas == [[2, 1, 3, 0], [2, 1, 3, 0], [2, 0, 3, 0], [2, 0, 3, 0], [0, 0, 3, 0]]


def test_apply_gate():
    gate = [True, True, True, False, True, True, True, True]
    mask = apply_threshold(_bump(), 0.5, slice_gate=gate)
    assert mask.any(axis=(0, 1)).tolist() == [False, False, True, False, True, False, False, False]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_label_free_finds_the_bump(dtype):
    heatmap = _bump().astype(dtype)
    threshold = label_free_threshold(heatmap, np.ones(heatmap.shape))
    assert 0.069 < threshold < 0.85
    assert apply_threshold(heatmap, threshold).sum() == 75


def test_label_free_third_class_takes_the_margin():
    heatmap = _bump()
    heatmap[1:3, 4:9, 2:5] += 0.6  # a blurred margin
    two, three = (apply_threshold(heatmap, label_free_threshold(heatmap, np.ones(heatmap.shape), k)) for k in (2, 3))
    assert two.sum() == 75 + 30
    assert three.sum() == 75
    binary = (heatmap > 0.7).astype(float)
    assert apply_threshold(binary, label_free_threshold(binary, np.ones(binary.shape), 3)).sum() == 75


def test_label_free_is_otsu_inside_the_brain_only():
    heatmap = _bump().astype(np.float32)
    brain = np.zeros(heatmap.shape, dtype=bool)
    brain[2:10, 2:10] = True
    threshold = label_free_threshold(heatmap, brain)
    assert threshold == pytest.approx(threshold_otsu(heatmap[brain]), abs=float(np.ptp(heatmap)) / 256)
    heatmap[~brain] = 1.0
    assert label_free_threshold(heatmap, brain) == threshold


@pytest.mark.parametrize("value", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("noise", [0.0, 5e-4])
def test_flat_heatmap_has_no_foreground(value, noise):
    heatmap = value - noise * np.random.default_rng(0).random((4, 4, 4))
    threshold = label_free_threshold(heatmap, np.ones(heatmap.shape))
    assert not apply_threshold(heatmap, threshold).any()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda h: apply_threshold(h[0], 0.5), r"heatmap expected shape \(X, Y, Z\), got \(12, 8\)"),
        (lambda h: apply_threshold(h * np.nan, 0.5), "heatmap expected finite values, got 1152 NaN or Inf voxels"),
        (lambda h: apply_threshold(h, 0.5, 10.0), "minimum area of 10.0 mm² expected a spacing in mm, got None"),
        (lambda h: apply_threshold(h, 0.5, 10.0, (1.0, 1.0)), r"3 positive values in mm, got \(1.0, 1.0\)"),
        (lambda h: apply_threshold(h, 0.5, 10.0, (1.0, 0.0, 1.0)), "3 positive values in mm"),
        (lambda h: apply_threshold(h, 0.5, brain=h[:3]), r"brain \(3, 12, 8\) does not match image \(12, 12, 8\)"),
        (lambda h: apply_threshold(h, 0.5, slice_gate=[1, 0]), r"slice gate \(2,\) does not match the slices"),
        (lambda h: label_free_threshold(h, np.ones(h.shape), 1), "classes expected at least 2, got 1"),
        (lambda h: label_free_threshold(h, np.zeros(h.shape)), "brain expected at least one voxel, got none"),
    ],
)
def test_exception(call, match):
    with pytest.raises(ValueError, match=match):
        call(_bump())
