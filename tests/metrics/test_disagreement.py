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

"""Scores of several predictions against several annotators, and slower, simpler ways to compute them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_rrr.metrics import (
    D_SOFT_THRESHOLDS,
    QUBIQ_THRESHOLDS,
    agreement_matrix,
    annotation_ncc,
    generalized_energy_distance,
    matched_dice,
    threshold_dice,
)


def masks(count: int, seed: int = 0, empty: tuple[int, ...] = ()) -> torch.Tensor:
    """Return masks of 2 regions, some of them empty in region 0."""
    found = (torch.rand(count, 2, 4, 4, 3, generator=torch.Generator().manual_seed(seed)) > 0.6).int()
    for index in empty:
        found[index, 0] = 0
    return found


def slow_distance(a: np.ndarray, b: np.ndarray) -> float:
    return 0.0 if not (a | b).any() else 1 - (a & b).sum() / (a | b).sum()


def slow_dice(a: np.ndarray, b: np.ndarray) -> float:
    return 1.0 if not (a.any() or b.any()) else 2 * (a & b).sum() / (a.sum() + b.sum())


def slow_ged(first: torch.Tensor, second: torch.Tensor, region: int) -> float:
    s, y = ([one[region].numpy().astype(bool) for one in group] for group in (first, second))

    def mean(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return float(np.mean([slow_distance(p, q) for p in a for q in b]))

    return 2 * mean(s, y) - mean(s, s) - mean(y, y)


@pytest.mark.parametrize("empty", [(), (0,), (0, 1, 2)])
def test_energy_distance_equals_that_of_all_pairs(empty: tuple[int, ...]) -> None:
    samples, annotations = masks(5, 1, empty), masks(3, 2, empty)
    found = generalized_energy_distance(samples, annotations)
    assert found.dtype == torch.float64
    for region in (0, 1):
        assert float(found[region]) == pytest.approx(slow_ged(samples, annotations, region), abs=1e-12)
    torch.testing.assert_close(found, generalized_energy_distance(annotations, samples))


def test_annotators_themselves_are_at_distance_0() -> None:
    annotations = masks(4, empty=(1,))
    assert generalized_energy_distance(annotations, annotations).tolist() == [0.0, 0.0]
    assert generalized_energy_distance(annotations.repeat(3, 1, 1, 1, 1), annotations).tolist() == pytest.approx(
        [0.0, 0.0], abs=1e-12
    )


def test_energy_distance_is_never_negative_and_2_at_worst() -> None:
    for seed in range(20):
        assert (generalized_energy_distance(masks(3, seed), masks(4, 100 + seed)) >= 0).all()
    apart = torch.tensor([[[1, 0]], [[0, 1]]])
    assert generalized_energy_distance(apart[:1], apart[1:]).tolist() == [2.0]


def test_two_empty_masks_agree_and_one_does_not() -> None:
    empty, full = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    assert generalized_energy_distance(empty, empty).tolist() == [0.0]
    assert generalized_energy_distance(empty, full).tolist() == [2.0]
    assert agreement_matrix(torch.cat([empty, empty, full])).tolist() == [[[1, 1, 0], [1, 1, 0], [0, 0, 1]]]


def test_inputs_stay_as_they_are() -> None:
    samples, annotations = masks(3, 1), MetaTensor(masks(3, 2).float())
    before = samples.clone(), annotations.clone()
    generalized_energy_distance(samples, annotations)
    matched_dice(samples, annotations)
    soft = samples.float().mean(0), annotations.mean(0)
    kept = soft[0].clone(), soft[1].clone()
    threshold_dice(*soft)
    for now, then in zip((samples, annotations, *soft), (*before, *kept), strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)


def test_with_three_annotators_nine_thresholds_are_three_levels() -> None:
    annotations = masks(3, 5)
    truth = annotations.float().mean(0)
    prediction = masks(4, 6).float().mean(0)
    counts = annotations.sum(0)
    levels = []
    for least in (1, 2, 3):
        soft = [prediction > level for level in QUBIQ_THRESHOLDS[3 * least - 3 : 3 * least]]
        levels += [[slow_dice(p[k].numpy(), (counts >= least)[k].numpy()) for k in (0, 1)] for p in soft]
    torch.testing.assert_close(threshold_dice(prediction, truth), torch.tensor(np.mean(levels, 0)).float())


@pytest.mark.parametrize("annotators", [5, 10])
def test_a_share_that_equals_a_threshold_is_not_above_it(annotators: int) -> None:
    """One of five is 0.2 whatever float32 makes of it: for every k of n the voxel drops out at exactly k / n."""
    for count in range(annotators + 1):
        truth = torch.tensor([1.0] * count + [0.0] * (annotators - count)).mean()
        above = sum(count * 10 > step * annotators for step in range(1, 10))
        score = threshold_dice(torch.ones(1, 1), truth.reshape(1, 1))
        assert float(score) == pytest.approx(above / 9, abs=1e-6), f"{count} of {annotators}"


def test_thresholds_of_d_soft() -> None:
    prediction, truth = masks(4, 1).float().mean(0), masks(5, 2).float().mean(0)
    expected = [
        np.mean([slow_dice((prediction[k] > t).numpy(), (truth[k] > t).numpy()) for t in D_SOFT_THRESHOLDS])
        for k in (0, 1)
    ]
    assert threshold_dice(prediction, truth, D_SOFT_THRESHOLDS).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_best_match_equals_that_of_all_orders() -> None:
    samples, annotations = masks(5, 1, (0,)), masks(4, 2, (1,))
    for region in (0, 1):
        best = max(
            np.mean([slow_dice(samples[s][region].numpy(), annotations[r][region].numpy()) for r, s in enumerate(way)])
            for way in itertools.permutations(range(5), 4)
        )
        assert float(matched_dice(samples, annotations)[region]) == pytest.approx(best)


def test_ncc_rewards_uncertainty_where_annotators_differ() -> None:
    border = torch.linspace(-3, 3, 13)
    annotations = torch.stack([(border > shift).float() for shift in (-1, 0, 1)])
    annotations = torch.stack([1 - annotations, annotations], dim=1)
    right = torch.stack([torch.sigmoid(2 * (border - shift)) for shift in (-1, 0, 1)])
    elsewhere = right.roll(5, dims=1)
    found = [float(annotation_ncc(torch.stack([1 - p, p], dim=1), annotations)) for p in (right, elsewhere)]
    assert found[0] > 0.4 > found[1]
    assert torch.isnan(annotation_ncc(torch.full((2, 2, 4), 0.5), annotations[:, :, :4]))


def test_ncc_equals_the_formula_voxel_by_voxel() -> None:
    rng = np.random.RandomState(0)
    s = rng.dirichlet(np.ones(3), size=(4, 6)).transpose(0, 2, 1)
    y = np.eye(3)[rng.randint(0, 3, (2, 6))].transpose(0, 2, 1)
    mean = s.mean(0)
    first = np.array([np.mean([-(mean[:, v] * np.log(one[:, v] + 1e-8)).sum() for one in s]) for v in range(6)])
    scores = []
    for truth in y:
        other = np.array([np.mean([-(truth[:, v] * np.log(one[:, v] + 1e-8)).sum() for one in s]) for v in range(6)])
        scores.append(np.corrcoef(first, other)[0, 1])
    assert float(annotation_ncc(torch.tensor(s), torch.tensor(y))) == pytest.approx(np.mean(scores))


def test_agreement_of_all_pairs() -> None:
    found, values = agreement_matrix(masks(4, 3, (2,))), masks(4, 3, (2,)).numpy().astype(bool)
    for region, a, b in itertools.product((0, 1), range(4), range(4)):
        assert float(found[region, a, b]) == pytest.approx(slow_dice(values[a, region], values[b, region]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="masks of one shape"):
        generalized_energy_distance(masks(2), masks(2)[:, :1])
    with pytest.raises(ValueError, match="0 or 1 everywhere"):
        generalized_energy_distance(masks(2).float() * 0.5, masks(2))
    with pytest.raises(ValueError, match="expected masks of shape"):
        agreement_matrix(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one prediction for each of 3 annotators, got 2"):
        matched_dice(masks(2), masks(3))
    with pytest.raises(ValueError, match="does not match truth"):
        threshold_dice(torch.zeros(1, 3), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        threshold_dice(torch.full((1, 3), 2.0), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="thresholds in"):
        threshold_dice(torch.zeros(1, 3), torch.zeros(1, 3), [1.0])
