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

"""Consensus by expectation maximization, against SimpleITK, a slower EM, and annotators whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from monai_rrr.data import simulate_annotator, vote
from monai_rrr.data.annotator_rules import KINDS
from monai_rrr.data.consensus_em import BANDS_MM, consensus_em, consensus_staple


def tumor(radius: float = 9.0, size: int = 32) -> np.ndarray:
    axis = np.arange(size) + 0.5 - size / 2
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    return np.select([distance < radius / 2, distance < radius / 1.4, distance < radius], [1, 3, 2], 0).astype(np.int8)


def team(*kinds: str, radius: float = 9.0) -> tuple[np.ndarray, np.ndarray]:
    truth = tumor(radius)
    drawn = [
        simulate_annotator(truth, (1, 1, 1), KINDS[kind], np.random.RandomState(number))
        for number, kind in enumerate(kinds)
    ]
    return np.stack(drawn).astype(np.int8), truth


def dice(found: np.ndarray, truth: np.ndarray) -> list[float]:
    pairs = [(a > 0, b > 0) for a, b in ((found, truth), ((found == 1) | (found == 3), (truth == 1) | (truth == 3)))]
    return [float(2 * (a & b).sum() / (a.sum() + b.sum())) for a, b in pairs]


def noisy(rates: list[tuple[float, float]], seed: int = 0, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Return binary masks whose voxels are kept with a sensitivity and a specificity each, and the truth."""
    rng, truth = np.random.RandomState(seed), (tumor(7.0, size) > 0).astype(np.int8)
    masks = [np.where(rng.uniform(size=truth.shape) < np.where(truth, *rate), truth, 1 - truth) for rate in rates]
    return np.stack(masks).astype(np.int8), truth


RATES = [(0.95, 0.97), (0.9, 0.95), (0.8, 0.99), (0.7, 0.93), (0.85, 0.9)]


def test_equals_staple_of_simpleitk_without_ties() -> None:
    masks, truth = noisy(RATES)
    share = float(masks.mean())
    prior = np.broadcast_to(np.array([1 - share, share]).reshape(2, 1, 1, 1), (2, *truth.shape))
    ours = consensus_em([masks], [(1, 1, 1)], [prior], 2, bands_mm=(), smoothing=(0.0, 0.0), max_iterations=200)
    staple = sitk.STAPLEImageFilter()
    staple.SetForegroundValue(1.0)
    found = sitk.GetArrayFromImage(staple.Execute([sitk.GetImageFromArray(one.astype(np.uint8)) for one in masks]))
    assert not ((np.abs(found - 0.5) < 0.01) | (np.abs(ours.probabilities[0][1] - 0.5) < 0.01)).any(), "no ties"
    np.testing.assert_array_equal(ours.classes[0], (found > 0.5).astype(int))
    np.testing.assert_allclose(ours.confusion[:, 0, 1, 1], staple.GetSensitivity(), atol=2e-3)
    np.testing.assert_allclose(ours.confusion[:, 0, 0, 0], staple.GetSpecificity(), atol=2e-3)
    assert (ours.classes[0] != truth).mean() < (masks != truth).mean(axis=(1, 2, 3)).min()


def test_equals_a_slow_em_with_one_matrix() -> None:
    """Dawid and Skene, voxel by voxel, three iterations, with an annotator who left a part out."""
    rng = np.random.RandomState(0)
    masks = rng.randint(0, 3, (3, 3, 3, 3)).astype(np.int8)
    masks[2, 0] = -1
    places = list(np.ndindex(3, 3, 3))
    belief = {p: np.bincount([m[p] for m in masks if m[p] >= 0], minlength=3) / sum(m[p] >= 0 for m in masks)
              for p in places}  # fmt: skip
    for _ in range(3):
        prior = np.mean(list(belief.values()), axis=0)
        matrices = np.ones((3, 3, 3)) + 4 * np.eye(3)
        for r, p in ((r, p) for r in range(3) for p in places if masks[r][p] >= 0):
            matrices[r, :, masks[r][p]] += belief[p]
        matrices /= matrices.sum(2, keepdims=True)
        for p in places:
            score = prior * np.prod([matrices[r, :, masks[r][p]] for r in range(3) if masks[r][p] >= 0], axis=0)
            belief[p] = score / score.sum()
    found = consensus_em([masks], [(1, 1, 1)], num_classes=3, bands_mm=(), max_iterations=3, tolerance=0.0)
    for p in places:
        np.testing.assert_allclose(found.probabilities[0][(slice(None), *p)], belief[p], rtol=1e-9)
    np.testing.assert_allclose(found.confusion[:, 0], matrices, rtol=1e-9)
    assert found.iterations == 3


@pytest.mark.parametrize("bands_mm", [(), BANDS_MM])
def test_six_diverse_annotators_give_more_than_their_vote(bands_mm: tuple[float, ...]) -> None:
    kinds = ("expert", "over", "under", "smoother", "confuser", "misser")
    cases = [team(*kinds, radius=radius) for radius in (9.0, 11.0)]
    found = consensus_em([masks for masks, _ in cases], [(1, 1, 1)] * 2, bands_mm=bands_mm)
    for (masks, truth), classes, shares in zip(cases, found.classes, found.probabilities, strict=True):
        em, voted = dice(classes, truth), dice(vote(torch.from_numpy(masks)[None])[0].numpy(), truth)
        assert em[0] > voted[0]
        assert em[0] > 0.995
        assert bands_mm or em[1] > max(voted[1], 0.995)
        np.testing.assert_allclose(shares.sum(0), 1.0)
    assert found.confusion.shape == (6, len(bands_mm) + 1, 4, 4)
    np.testing.assert_allclose(found.confusion.sum(3), 1.0)
    assert found.reliability.sum() == pytest.approx(1.0)
    assert kinds[int(found.reliability.argmin())] == "over"
    assert found.reliability[0] > found.reliability[2], "the expert counts more than who draws too small"


def test_a_correlated_majority_wins() -> None:
    """What the documentation says plainly: two who draw too large make the consensus too large."""
    masks, truth = team("over", "over", "expert")
    assert (consensus_em([masks], [(1, 1, 1)]).classes[0] > 0).sum() > 1.3 * (truth > 0).sum()


def test_who_is_absent_changes_nothing() -> None:
    masks, _ = team("expert", "over", "under")
    absent = np.concatenate([masks, np.full_like(masks[:1], -1)])
    three, four = consensus_em([masks], [(1, 1, 1)]), consensus_em([absent], [(1, 1, 1)])
    np.testing.assert_allclose(three.probabilities[0], four.probabilities[0], atol=1e-12)
    assert four.reliability[3] == 0
    np.testing.assert_allclose(four.reliability[:3], three.reliability)


def test_a_sure_prior_decides() -> None:
    masks, _ = team("over")
    truth = tumor(7.0)
    prior = (np.arange(4).reshape(4, 1, 1, 1) == truth).astype(float)
    np.testing.assert_array_equal(
        consensus_em([masks], [(1, 1, 1)], [prior], max_iterations=1).classes[0] > 0, truth > 0
    )


def test_nothing_drawn_is_background() -> None:
    found = consensus_em([np.zeros((2, 4, 4, 4), np.int8)], [(1, 1, 1)])
    assert not found.classes[0].any()
    assert found.reliability.tolist() == [0.0, 0.0]
    assert not consensus_staple(np.zeros((2, 4, 4, 4), np.int8)).any()


def test_staple_of_several_classes() -> None:
    masks, truth = team("expert", "over", "under", "smoother", "misser")
    assert min(dice(consensus_staple(masks), truth)) > 0.9
    with pytest.raises(ValueError, match="use consensus_em"):
        consensus_staple(np.full((2, 3, 3, 3), -1))


def test_what_does_not_fit_is_refused() -> None:
    masks = np.zeros((2, 4, 4, 4), np.int8)
    with pytest.raises(ValueError, match="expected annotations R X Y Z"):
        consensus_em([masks[0]], [(1, 1, 1)])
    with pytest.raises(ValueError, match="classes from -1 to 3, got 0 to 4"):
        consensus_em([masks + np.arange(2).reshape(2, 1, 1, 1) * 4], [(1, 1, 1)])
    with pytest.raises(ValueError, match="does not match annotations"):
        consensus_em([masks], [(1, 1, 1)], [np.zeros((3, 4, 4, 4))])
    with pytest.raises(ValueError, match="ascending limits"):
        consensus_em([masks], [(1, 1, 1)], bands_mm=(1.0, -1.0))
    with pytest.raises(ValueError, match="for each of at least one case, got 0"):
        consensus_em([], [])
    with pytest.raises(ValueError, match="the same annotators in all cases"):
        consensus_em([masks, masks[:1]], [(1, 1, 1)] * 2)
