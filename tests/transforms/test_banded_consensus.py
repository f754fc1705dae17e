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

"""Expectation maximization with bands: a loop, SimpleITK's STAPLE, and annotators whose habits are known."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from monai_rrr.data import simulate_annotator
from monai_rrr.data.annotator_rules import KINDS
from monai_rrr.metrics import class_regions
from monai_rrr.transforms import BandedConsensus
from monai_rrr.transforms.truncated_distance import truncated_distance
from monai_rrr.transforms.vote_share import vote_share

SPACING = (1.0, 1.0, 1.0)
BINARY = {"num_classes": 2, "regions": ((1,),)}


def ball(side: int, radius: float) -> Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(side)) - (side - 1) / 2] * 3, indexing="ij"))
    return radius - grid.square().sum(0).sqrt()


def noisy(truth: Tensor, error: Tensor, seed: int) -> Tensor:
    """Flip voxels with probability ``error``."""
    flipped = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed)) < error
    return torch.where(flipped, 1 - truth, truth)


def flat_prior(drawn: Tensor, classes: int) -> Tensor:
    return torch.full((classes, *drawn.shape[1:]), 1 / classes)


def test_against_a_loop() -> None:
    drawn = torch.randint(-1, 3, (3, 5, 4, 3), generator=torch.Generator().manual_seed(0))
    prior = torch.randn(3, 5, 4, 3, generator=torch.Generator().manual_seed(1)).softmax(0)
    regions = ((1, 2), (2,))
    estimate = BandedConsensus(SPACING, 3, regions, edges=(-1.0, 1.0), margin=20.0, iterations=2, diagonal=5.0)
    found, rho = estimate([drawn], [prior])
    vote = vote_share(drawn[None], num_classes=3)[0].double()
    label = vote.argmax(0)
    inside = torch.stack([label > 0, label == 2])
    distance = truncated_distance(inside[None], SPACING, 2.0)[0]
    places = [tuple(p) for p in torch.cartesian_prod(*(torch.arange(n) for n in drawn.shape[1:])).tolist()]
    places = [p for p in places if any(int(drawn[(r, *p)]) >= 0 for r in range(3))]
    consensus = {p: [float(c == int(label[p])) for c in range(3)] for p in places}

    def band(p: tuple[int, ...]) -> int:
        nearest = min((float(d[p]) for d in distance), key=abs)
        return sum(nearest > edge for edge in (-1.0, 1.0))

    def matrices() -> Tensor:
        counts = torch.full((3, 3, 3, 3), 1.0, dtype=torch.float64) + 4 * torch.eye(3)
        for p in places:
            for r in range(3):
                y = int(drawn[(r, *p)])
                if y >= 0:
                    for c in range(3):
                        counts[r, band(p), c, y] += consensus[p][c]
        return counts / counts.sum(3, keepdim=True)

    for _ in range(2):
        confusion = matrices()
        for p in places:
            score = [float(prior[(c, *p)]) for c in range(3)]
            for r in range(3):
                y = int(drawn[(r, *p)])
                if y >= 0:
                    score = [s * float(confusion[r, band(p), c, y]) for c, s in enumerate(score)]
            consensus[p] = [s / sum(score) for s in score]
    for p in places:
        assert [float(found[0][(c, *p)]) for c in range(3)] == pytest.approx(consensus[p], abs=1e-6)
    expected = matrices().diagonal(dim1=2, dim2=3).mean((1, 2))
    assert rho.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    nobody = (drawn < 0).all(0)
    assert bool(nobody.any())
    assert float(found[0][:, nobody].abs().sum()) == 0


def test_as_staple_of_simpleitk() -> None:
    truth = (ball(12, 4) > 0).long()
    rates = (0.02, 0.1, 0.2, 0.3, 0.15)
    drawn = torch.stack([noisy(truth, torch.full(truth.shape, rate), seed) for seed, rate in enumerate(rates)])
    staple = sitk.STAPLEImageFilter()
    staple.SetForegroundValue(1)
    staple.SetMaximumIterations(200)
    expected = sitk.GetArrayFromImage(
        staple.Execute([sitk.GetImageFromArray(d.numpy().astype("uint8")) for d in drawn])
    )
    share = float(drawn.double().mean())
    prior = torch.tensor([1 - share, share])[:, None, None, None].expand(2, *truth.shape)
    estimate = BandedConsensus(SPACING, **BINARY, edges=(), diagonal=1e-9, other=1e-9, margin=50.0, iterations=200)
    found, rho = estimate([drawn], [prior])
    assert torch.allclose(found[0][1], torch.as_tensor(expected).float(), atol=1e-3)
    mean = [(s + p) / 2 for s, p in zip(staple.GetSensitivity(), staple.GetSpecificity(), strict=True)]
    assert rho.tolist() == pytest.approx(mean, abs=1e-3)
    assert int(rho.argmax()) == 0


def tumor(radius: float, size: int = 28) -> Tensor:
    axis = torch.arange(size) + 0.5 - size / 2
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    return torch.where(distance < radius / 2, 1, torch.where(distance < radius / 1.4, 3, 2 * (distance < radius)))


def team(*kinds: str, radius: float = 9.0) -> tuple[Tensor, Tensor]:
    """Return what simulated annotators draw of a tumor, and the tumor."""
    truth = tumor(radius)
    drawn = [
        simulate_annotator(truth.numpy(), SPACING, KINDS[kind], np.random.RandomState(number))
        for number, kind in enumerate(kinds)
    ]
    return torch.from_numpy(np.stack(drawn)).long(), truth


def dice(found: Tensor, truth: Tensor) -> list[float]:
    first, second = (class_regions(classes).flatten(1) for classes in (found, truth))
    return (2 * (first & second).sum(1) / (first.sum(1) + second.sum(1))).tolist()


@pytest.mark.parametrize("edges", [(), (-4.0, -1.0, 1.0, 4.0)])
def test_six_diverse_annotators_give_more_than_their_vote(edges: tuple[float, ...]) -> None:
    cases = [team("expert", "over", "under", "smoother", "confuser", "misser", radius=radius) for radius in (8.0, 10.0)]
    found, rho = BandedConsensus(SPACING, edges=edges, diagonal=5.0, shares=True)([drawn for drawn, _ in cases])
    for consensus, (drawn, truth) in zip(found, cases, strict=True):
        scores = zip(dice(consensus.argmax(0), truth), dice(vote_share(drawn[None])[0].argmax(0), truth), strict=True)
        assert all(em > voted for em, voted in scores)
        assert dice(consensus.argmax(0), truth)[0] > 0.995
    assert float(rho[0]) > float(rho[1:5].max()), "the expert counts more than those who draw otherwise"


def test_a_correlated_majority_wins() -> None:
    """What the documentation says plainly: two who draw too large make the consensus too large."""
    drawn, truth = team("over", "over", "expert")
    found, _ = BandedConsensus(SPACING, edges=(), diagonal=5.0, shares=True)([drawn])
    assert int((found[0].argmax(0) > 0).sum()) > 1.3 * int((truth > 0).sum())


def test_who_is_absent_changes_nothing() -> None:
    drawn, _ = team("expert", "over", "under")
    absent = torch.cat([drawn, torch.full_like(drawn[:1], -1)])
    three, four = (BandedConsensus(SPACING)([one], [flat_prior(one, 4)]) for one in (drawn, absent))
    assert torch.equal(three[0][0], four[0][0])
    assert torch.equal(torch.cat([three[1], torch.zeros(1)]), four[1])


def test_a_sure_prior_decides() -> None:
    drawn, _ = team("over")
    truth = tumor(7.0)
    prior = torch.nn.functional.one_hot(truth, 4).movedim(-1, 0).float()
    found, _ = BandedConsensus(SPACING, iterations=1)([drawn], [prior])
    assert torch.equal(found[0].argmax(0), truth)


def test_nothing_drawn_is_background() -> None:
    drawn = torch.zeros(2, 4, 4, 4, dtype=torch.int64)
    for found, _ in (
        BandedConsensus(SPACING)([drawn], [flat_prior(drawn, 4)]),
        BandedConsensus(SPACING, shares=True)([drawn]),
    ):
        assert bool((found[0][0] == 1).all())


def unsure(distance: Tensor) -> Tensor:
    """What a network says that knows the boundary to some millimeters."""
    return torch.stack([(-distance / 2).sigmoid(), (distance / 2).sigmoid()])


def test_better_than_the_votes() -> None:
    distance = ball(20, 6)
    truth = (distance > 0).long()
    near = (distance.abs() < 3).float()
    errors = [0.02, 0.4, 0.4, 0.4, 0.4]
    drawn = torch.stack([noisy(truth, rate * near, seed) for seed, rate in enumerate(errors)])
    found, rho = BandedConsensus(SPACING, **BINARY)([drawn], [unsure(distance)])
    vote = vote_share(drawn[None], num_classes=2)[0].argmax(0)
    wrong, voted = (int((label != truth).sum()) for label in (found[0].argmax(0), vote))
    assert wrong < 0.6 * voted
    assert int(rho.argmax()) == 0


def test_bands_find_who_draws_more() -> None:
    distance = ball(24, 6)
    drawn = torch.stack([(distance + offset > 0).long() for offset in (0.0, 0.0, 0.0, 2.0, 2.0)])
    found, rho = BandedConsensus(SPACING, **BINARY)([drawn], [unsure(distance)])
    assert torch.equal(found[0].argmax(0), (distance > 0).long())
    assert float(rho[:3].min()) > float(rho[3:].max())


def test_few_counts_let_a_habit_become_a_class() -> None:
    """What the default counts are for."""
    distance = ball(24, 6)
    drawn = torch.stack([(distance + offset > 0).long() for offset in (0.0, 0.0, 0.0, 2.0, 2.0)])
    found, _ = BandedConsensus(SPACING, **BINARY, diagonal=5.0)([drawn], [unsure(distance)])
    assert not torch.equal(found[0].argmax(0), (distance > 0).long())


def test_cases_share_the_matrices_and_far_voxels_keep_their_votes() -> None:
    truth = (ball(24, 4) > 0).long()
    drawn = torch.stack([noisy(truth, torch.full(truth.shape, rate), 7) for rate in (0.0, 0.1, 0.2)])
    drawn[:, :4] = 0
    drawn[:, 4:] *= (ball(24, 6) > 0).long()[4:]
    estimate = BandedConsensus(SPACING, **BINARY, margin=2.0)
    both, _ = estimate([drawn, drawn], [flat_prior(drawn, 2)] * 2)
    assert torch.equal(both[0], both[1])
    far = ball(24, 6) < -3
    vote = vote_share(drawn[None], num_classes=2)[0]
    assert torch.equal(both[0][:, far], vote[:, far])


def test_exception() -> None:
    drawn = torch.zeros(2, 3, 3, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"prior must be \(4, 3, 3, 3\), got \(2, 3, 3, 3\)"):
        BandedConsensus(SPACING)([drawn], [flat_prior(drawn, 2)])
    with pytest.raises(ValueError, match="expected a prior of each case, or shares"):
        BandedConsensus(SPACING)([drawn])
    with pytest.raises(ValueError, match="must be positive"):
        BandedConsensus(SPACING, other=0.0)
    with pytest.raises(ValueError, match="edges must rise"):
        BandedConsensus(SPACING, edges=(1.0, 0.0))
