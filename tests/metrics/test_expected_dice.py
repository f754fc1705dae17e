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

from monai_rrr.metrics.expected_dice import expected_dice

THRESHOLDS = np.linspace(0.02, 0.98, 49)


def cohort(share, seed=0, cases=3, depth=16, voxels=4000):
    """Slices whose background is alike; a region that fills a share of the tagged ones, as high as a ball would be."""
    rng = np.random.default_rng(seed)
    above, inside, tags, truth, sizes = [], [], [], [], 0
    for _ in range(cases):
        values = rng.beta(2, 8, (depth, voxels))
        tagged = np.zeros(depth, dtype=bool)
        tagged[4:12] = True
        region = (rng.random(values.shape) < share) & tagged[:, None]
        values[region] = rng.beta(8, 4, region.sum())
        above.append((values[:, :, None] > THRESHOLDS).sum(axis=1))
        truth.append((values[:, :, None] > THRESHOLDS) & region[:, :, None])
        sizes += int(region.sum())
        inside.append(np.full(depth, voxels))
        tags.append(tagged)
    hit = sum(t.sum(axis=(0, 1)) for t in truth)
    found = sum(a.sum(axis=0) for a in above)
    return above, inside, tags, 2 * hit / (sizes + found)


@pytest.mark.parametrize("share", [0.02, 0.08, 0.3])
def test_is_near_the_true_dice(share):
    above, inside, tags, true = cohort(share)
    # slices so thick that the ball leaves room for the share
    estimate = expected_dice(above, inside, tags, [1.0] * 3, [4.0] * 3)
    assert estimate is not None
    assert np.abs(estimate - true).max() < 0.1
    assert true[estimate.argmax()] > true.max() - 0.03


def test_equals_the_formula_written_slowly():
    above, inside, tags, _ = cohort(0.1)
    mm3, thickness = [1.0, 2.0, 0.5], [4.0, 3.0, 5.0]
    found, clean = np.zeros(len(THRESHOLDS)), np.zeros(len(THRESHOLDS))
    plus = minus = ball = 0.0
    for case in range(3):
        height = 0.0
        for z, tagged in enumerate(tags[case]):
            if tagged:
                plus += mm3[case] * inside[case][z]
                found += mm3[case] * above[case][z]
                height += thickness[case]
            else:
                minus += mm3[case] * inside[case][z]
                clean += mm3[case] * above[case][z]
        ball += 4 / 3 * np.pi * (height / 2) ** 3
    ratios = [(1 - f / plus) / (1 - c / minus) for f, c in zip(found, clean, strict=True) if 1 - c / minus >= 0.2]
    share = min(1 - min(ratios), ball / plus)
    hit = [min(max(f - (1 - share) * plus * c / minus, 0), share * plus) for f, c in zip(found, clean, strict=True)]
    expected = [2 * h / (share * plus + f + c) for h, f, c in zip(hit, found, clean, strict=True)]
    np.testing.assert_allclose(expected_dice(above, inside, tags, mm3, thickness), expected)


def test_no_region_is_larger_than_the_ball_of_its_height():
    above, inside, tags, _ = cohort(0.3)
    ball = 3 * np.pi / 6 * 4.0**3
    everything = sum(float(a[:, 0].sum()) for a in above)
    flat = expected_dice(above, inside, tags, [1.0] * 3, [0.5] * 3)
    assert flat[0] == pytest.approx(2 * ball / (ball + everything), rel=1e-3)
    assert flat[0] < expected_dice(above, inside, tags, [1.0] * 3, [4.0] * 3)[0] / 10


@pytest.mark.parametrize("tags", [[True] * 4, [False] * 4])
def test_says_nothing_without_both_kinds_of_slices(tags):
    voxels = np.tile(np.arange(4)[::-1], (4, 1))
    assert expected_dice([voxels], [np.full(4, 9)], [np.array(tags)], [1.0], [3.0]) is None


def test_says_nothing_without_more_evidence_in_tagged_slices():
    voxels = np.tile(np.arange(4)[::-1], (4, 1))
    assert expected_dice([voxels], [np.full(4, 9)], [np.array([True, True, False, False])], [1.0], [3.0]) is None
