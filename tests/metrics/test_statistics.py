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

import math

import numpy as np
import pytest

from monai_rrr.metrics import bootstrap_mean, paired_difference


def test_percentiles_of_a_slow_bootstrap():
    values = np.random.default_rng(0).normal(0.7, 0.1, 40)
    found = bootstrap_mean(values)
    rng = np.random.default_rng(1)
    means = [rng.choice(values, len(values)).mean() for _ in range(4000)]
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.006)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.006)
    assert found.cases == 40


def test_coverage():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        found = bootstrap_mean(rng.beta(5, 2, 25), n_boot=600, level=0.9)
        covered += found.low <= 5 / 7 <= found.high
    assert 0.82 < covered / 150 < 0.96


def test_deterministic_and_seeded():
    values = np.random.default_rng(0).random(12)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_wider_level_is_wider():
    values = np.random.default_rng(0).random(12)
    narrow, wide = bootstrap_mean(values, level=0.8), bootstrap_mean(values, level=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_seeds_are_averaged_first():
    values = np.random.default_rng(0).random((3, 12))
    assert bootstrap_mean(values) == bootstrap_mean(values.mean(axis=0))
    assert bootstrap_mean(values).cases == 12
    repeated = np.repeat(values[:1], 20, axis=0)
    np.testing.assert_allclose(
        [bootstrap_mean(repeated).low, bootstrap_mean(repeated).high],
        [bootstrap_mean(values[0]).low, bootstrap_mean(values[0]).high],
    )


def test_pairing_removes_what_both_methods_share():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 0.2, 12)
    a, b = 0.7 + difficulty + rng.normal(0, 0.01, 12), 0.65 + difficulty
    found = paired_difference(a, b)
    assert found.low > 0.03
    assert found.mean == pytest.approx((a - b).mean())
    assert bootstrap_mean(a).low < bootstrap_mean(b).high
    mirrored = paired_difference(b, a)
    assert mirrored.mean == pytest.approx(-found.mean)
    assert paired_difference(np.stack([a, a]), b).mean == pytest.approx(found.mean)


def test_equal_values_and_single_case():
    assert paired_difference([0.5, 0.7], [0.5, 0.7]) == bootstrap_mean([0.0, 0.0])
    same = bootstrap_mean([0.8] * 5)
    assert (same.low, same.high) == pytest.approx((0.8, 0.8))
    alone = bootstrap_mean([0.8])
    assert alone.mean == 0.8
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    assert str(same) == "0.800 [0.800, 0.800]"


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0 - 1e-9]])
def test_extreme_values_give_finite_ends(values):
    found = bootstrap_mean(values)
    assert min(values) <= found.low <= found.mean <= found.high <= max(values)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bootstrap_mean([]), r"values expected cases or seeds x cases, got shape \(0,\)"),
        (lambda: bootstrap_mean(np.zeros((2, 2, 2))), r"got shape \(2, 2, 2\)"),
        (lambda: bootstrap_mean([0.1, math.nan]), "values expected finite values, got 1 NaN or Inf"),
        (lambda: bootstrap_mean([0.1, 0.2], level=95), r"level expected a value in \(0, 1\), got 95"),
        (lambda: paired_difference([0.1, 0.2], [0.1]), "the same cases in a and b, got 2 and 1"),
    ],
)
def test_exception(call, match):
    with pytest.raises(ValueError, match=match):
        call()
