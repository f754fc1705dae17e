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

"""SimpleITK's STAPLE as an estimate: against expectation maximization of our own, and with who is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from monai_rrr.transforms import BandedConsensus, StapleConsensus, vote_share

SPACING = (1.0, 1.0, 1.0)
BINARY: dict[str, Any] = {"num_classes": 2, "regions": ((1,),), "margin": 50.0}


def ball(radius: float, side: int = 14) -> Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(side)) - (side - 1) / 2] * 3, indexing="ij"))
    return (grid.square().sum(0).sqrt() < radius).long()


def noisy(truth: Tensor, rates: tuple[float, ...]) -> Tensor:
    """Return one mask for each rate, the share of voxels that are flipped."""
    generator = torch.Generator().manual_seed(0)
    flipped = torch.stack([torch.rand(truth.shape, generator=generator) < rate for rate in rates])
    return torch.where(flipped, 1 - truth, truth)


def test_equals_expectation_maximization_without_ties() -> None:
    drawn = noisy(ball(4), (0.02, 0.1, 0.2, 0.3, 0.15))
    share = float(drawn.double().mean())
    prior = torch.tensor([1 - share, share])[:, None, None, None].expand(2, *drawn.shape[1:])
    em = BandedConsensus(SPACING, **BINARY, edges=(), diagonal=1e-9, other=1e-9, iterations=100)
    expected, reliability = em([drawn], [prior])
    found, rho = StapleConsensus(SPACING, **BINARY)([drawn])
    assert float((expected[0][1] - 0.5).abs().min()) > 0.01, "no ties"
    torch.testing.assert_close(found[0], expected[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(rho, reliability, atol=1e-3, rtol=0)
    assert int((found[0].argmax(0) != ball(4)).sum()) < int((drawn[0] != ball(4)).sum())


def nested() -> Tensor:
    """Edema, in it enhancing tumor, in it a core, by four annotators who scatter."""
    inner = [noisy(ball(radius), (0.02, 0.05, 0.1, 0.1)) for radius in (5.5, 3.5, 2.0)]
    wt, tc, core = (mask.bool() for mask in inner)
    return torch.where(wt & tc & core, 1, torch.where(wt & tc, 3, torch.where(wt, 2, 0)))


def test_classes_of_nested_regions() -> None:
    drawn = nested()
    found, rho = StapleConsensus(SPACING, margin=50.0)([drawn])
    consensus = found[0]
    torch.testing.assert_close(consensus.sum(0), torch.ones(drawn.shape[1:]))
    assert float(consensus.min()) >= 0
    for classes in ((1, 2, 3), (1, 3)):  # a region inside another never has more of it
        inside = torch.stack([drawn == c for c in classes]).any(0).long()
        alone, _ = StapleConsensus(SPACING, **BINARY)([inside])
        together = consensus[list(classes)].sum(0)
        assert bool((together <= alone[0][1] + 1e-5).all())
        assert int(((together > 0.5) != (alone[0][1] > 0.5)).sum()) < 30
    assert rho.tolist() == sorted(rho.tolist(), reverse=True), "who scatters more is less reliable"


def test_far_voxels_keep_their_votes() -> None:
    drawn = nested() * (ball(5.5) > 0)
    found, _ = StapleConsensus(SPACING, margin=2.0)([drawn])
    far = ball(9) == 0
    assert torch.equal(found[0][:, far], vote_share(drawn[None])[0][:, far])


def test_who_leaves_something_out_does_not_count() -> None:
    drawn = nested()
    partial = torch.cat([drawn, ball(6)[None] * 2])
    partial[4, 7:] = -1
    estimate = StapleConsensus(SPACING, margin=50.0)
    (first, second), rho = estimate([partial, torch.cat([drawn, torch.full_like(drawn[:1], -1)])])
    plain, reliability = estimate([drawn])
    assert torch.equal(second, plain[0])
    assert torch.equal(first, plain[0])
    torch.testing.assert_close(rho, torch.cat([reliability, reliability.mean()[None]]))
    nobody, rho = estimate([torch.full_like(drawn, -1)])
    assert float(nobody[0].abs().sum()) == 0
    assert rho.tolist() == [1.0] * 4


def test_one_annotator_and_no_tumor() -> None:
    one = nested()[:1]
    found, rho = StapleConsensus(SPACING)([one, torch.zeros_like(one)])
    assert torch.equal(found[0].argmax(0), one[0])
    assert bool((found[1][0] == 1).all())
    assert rho.tolist() == [1.0]
    same, _ = StapleConsensus(SPACING)([torch.cat([one] * 3)])
    assert torch.equal(same[0].argmax(0), one[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.0}, "margin and iterations must be positive"),
        ({"regions": ((1, 2, 3), (3,))}, "expected nested regions, one class less each, of 4 classes"),
        ({"regions": ((1, 2, 3), (1, 3), (2,))}, "nested regions"),
        ({"num_classes": 5}, "of 5 classes"),
    ],
)
def test_exception(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StapleConsensus(SPACING, **options)
