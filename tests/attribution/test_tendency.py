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

"""Who and why, against loops that follow the equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.attribution import (
    annotator_posterior,
    annotator_share,
    assignment,
    deviation,
    disagreement,
    label_without,
    matching_prototypes,
    mixture,
    prototype_share,
    prototype_similarity,
    responsibility,
    saliency_box,
    signed_tendency,
)

B, R, C, M, K, E, SIZE = 2, 3, 4, 2, 3, 5, (3, 2, 2)


@pytest.fixture
def points() -> Tensor:
    return F.normalize(torch.randn(B, E, *SIZE, dtype=torch.float64), dim=1)


@pytest.fixture
def shared() -> Tensor:
    return F.normalize(torch.randn(C, K, E, dtype=torch.float64), dim=-1)


@pytest.fixture
def tendency() -> Tensor:
    return F.normalize(torch.randn(R, C, M, E, dtype=torch.float64), dim=-1)


@pytest.fixture
def probability() -> Tensor:
    return torch.randn(B, 1 + R, C, *SIZE, dtype=torch.float64).softmax(2)


PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def voxels() -> list[tuple[int, ...]]:
    return [tuple(p) for p in torch.cartesian_prod(*(torch.arange(n) for n in (B, *SIZE))).tolist()]


def test_assignment(points: Tensor, shared: Tensor, tendency: Tensor) -> None:
    share = assignment(points, shared, tendency, PRIOR, temperature=0.2, chunk=5)
    for b, *p in voxels():
        g = points[(b, slice(None), *p)]
        best = [max(float(p @ g) for p in shared.flatten(0, 1))]
        best += [max(float(p @ g) for p in tendency[r].flatten(0, 1)) for r in range(R)]
        score = [float(PRIOR[r]) * math.exp(best[r] / 0.2) for r in range(1 + R)]
        for r in range(1 + R):
            assert float(share[(b, r, *p)]) == pytest.approx(score[r] / sum(score))


def test_prototypes_that_are_not_there_take_no_part(points: Tensor, shared: Tensor, tendency: Tensor) -> None:
    tendency[1] = 0
    tendency[2, :, 1] = 0
    share = assignment(points, shared, tendency, PRIOR)
    assert float(share[:, 2].abs().max()) == 0
    assert torch.allclose(share.sum(1), torch.ones(B, *SIZE).double())
    tendency[2, :, 1] = tendency[2, :, 0]
    assert torch.allclose(assignment(points, shared, tendency, PRIOR), share)
    nobody = assignment(points, 0 * shared, 0 * tendency, PRIOR)
    assert torch.allclose(nobody, PRIOR[:, None, None, None].expand_as(nobody))


def test_a_prior_of_0_leaves_one_out(points: Tensor, shared: Tensor, tendency: Tensor) -> None:
    similarity = (prototype_similarity(points.movedim(1, -1).flatten(0, -2), p) for p in (shared, tendency))
    share = annotator_share(*similarity, torch.tensor([0.5, 0.0, 0.25, 0.25]).double())
    assert float(share[:, 1].abs().max()) == 0
    assert bool(torch.isfinite(share).all())


def test_prototype_share() -> None:
    q = prototype_share(torch.tensor([0.5, 0.4]).double(), 0.1)
    assert float(q[0] / q[1]) == pytest.approx(math.e)


def test_mixture_and_who(probability: Tensor) -> None:
    share = torch.randn(B, 1 + R, *SIZE, dtype=torch.float64).softmax(1)
    mixed = mixture(share, probability)
    label = mixed.argmax(1)
    who = responsibility(share, probability, label)
    assert torch.allclose(who.sum(1), torch.ones(B, *SIZE).double())
    assert torch.allclose(mixed.sum(1), torch.ones(B, *SIZE).double())
    for b, *p in voxels():
        y = int(label[(b, *p)])
        joint = [float(share[(b, r, *p)] * probability[(b, r, y, *p)]) for r in range(1 + R)]
        assert float(mixed[(b, y, *p)]) == pytest.approx(sum(joint))
        for r in range(1 + R):
            assert float(who[(b, r, *p)]) == pytest.approx(joint[r] / sum(joint))


def test_deviation_disagreement_and_signed_tendency() -> None:
    logits = torch.randn(B, R, C, *SIZE, dtype=torch.float64)
    consensus = torch.randn(B, C, *SIZE, dtype=torch.float64)
    probability, label = logits.softmax(2), consensus.argmax(1)
    away, apart, signed = deviation(probability, label), disagreement(probability), signed_tendency(logits, consensus)
    for b, *p in voxels():
        at = [probability[(b, r, slice(None), *p)] for r in range(R)]
        pairs = [float((at[r] - at[s]).abs().sum()) / 2 for r in range(R) for s in range(r)]
        assert float(apart[(b, *p)]) == pytest.approx(max(pairs))
        base = consensus[(b, slice(None), *p)].softmax(0)
        for r in range(R):
            assert float(away[(b, r, *p)]) == pytest.approx(1 - float(at[r][label[(b, *p)]]))
            odds = [math.log((1 - float(q[0])) / float(q[0])) for q in (at[r], base)]
            assert float(signed[(b, r, *p)]) == pytest.approx(odds[0] - odds[1])
    assert float(signed_tendency(consensus[:, None], consensus).abs().max()) == 0
    assert float(disagreement(probability[:, :1]).max()) == 0


def test_posterior_of_case_and_regions(probability: Tensor) -> None:
    probability = probability[0, 1:]
    label = torch.randint(-1, C, SIZE)
    region = torch.randint(0, 4, SIZE)
    region[0, 0, 0] = 3
    rho = torch.tensor([0.5, 0.3, 0.2]).double()
    found = annotator_posterior(probability, label, region, rho, temperature=2.0)
    assert found.shape == (3, R)
    for n in range(1, 4):
        score = []
        for r in range(R):
            total = math.log(float(rho[r]))
            for p in torch.cartesian_prod(*(torch.arange(n) for n in SIZE)).tolist():
                if int(region[tuple(p)]) == n and int(label[tuple(p)]) >= 0:
                    total += math.log(float(probability[(r, int(label[tuple(p)]), *p)])) / 2
            score.append(math.exp(total))
        assert found[n - 1].tolist() == pytest.approx([s / sum(score) for s in score])
    assert torch.allclose(annotator_posterior(probability, label, torch.zeros(SIZE).bool(), rho)[0], rho)
    assert annotator_posterior(probability, label, region > 0, rho).shape == (1, R)


def test_the_one_who_drew_it_is_named() -> None:
    truth = torch.randint(0, C, (R, *SIZE))
    probability = (3 * F.one_hot(truth, C).movedim(-1, 1).double()).softmax(1)
    for r in range(R):
        found = annotator_posterior(probability, truth[r], torch.ones(SIZE).bool(), torch.ones(R), temperature=1.0)
        assert int(found[0].argmax()) == r


def test_label_without() -> None:
    share = torch.tensor([0.1, 0.7, 0.2]).reshape(1, 3, 1)
    probability = torch.tensor([[0.6, 0.4], [0.0, 1.0], [0.9, 0.1]]).reshape(1, 3, 2, 1)
    assert mixture(share, probability).argmax(1).item() == 1
    assert label_without(share, probability, 1).item() == 0
    assert label_without(share, probability, 2).item() == 1
    with pytest.raises(ValueError, match="annotator must be from 0 to 2, got 3"):
        label_without(share, probability, 3)


def test_matching_prototypes(tendency: Tensor) -> None:
    seen = F.normalize(tendency[0, 2, 1] + 0.05 * torch.randn(4, E).double(), dim=1)
    best = matching_prototypes(seen, tendency[0])
    assert (best[0].label, best[0].slot) == (2, 1)
    assert best[0].similarity > 0.95
    assert [m.similarity for m in best] == sorted((m.similarity for m in best), reverse=True)
    only = torch.zeros_like(tendency[0])
    only[1, 0] = tendency[0, 1, 0]
    assert [(m.label, m.slot) for m in matching_prototypes(seen, only)] == [(1, 0)]


def test_saliency_box() -> None:
    gradient = torch.zeros(2, 6, 5, 4)
    gradient[0, 2:4, 1:4, 0] = -1
    gradient[1, 2:4, 1:4, 0] = 1
    assert saliency_box(gradient, 1.0) == ((2, 4), (1, 4), (0, 1))
    gradient[0, 0, 0, 3] = 0.01
    assert saliency_box(gradient, 0.9) == ((2, 4), (1, 4), (0, 1))
    assert saliency_box(gradient, 1.0) == ((0, 4), (0, 4), (0, 4))


def test_exception(probability: Tensor) -> None:
    with pytest.raises(ValueError, match="does not match prototypes"):
        prototype_similarity(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"share .* does not match probability"):
        mixture(torch.ones(B, R, *SIZE), probability)
    with pytest.raises(ValueError, match=r"label .* does not match share"):
        responsibility(torch.ones(B, 1 + R, *SIZE), probability, torch.zeros(B, 1).long())
    with pytest.raises(ValueError, match=r"label .* do not match probability"):
        annotator_posterior(probability[0], torch.zeros(2), torch.zeros(2), torch.ones(4))
    with pytest.raises(ValueError, match="at least 1 voxel"):
        matching_prototypes(torch.zeros(0, E), torch.ones(C, M, E))
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
        saliency_box(torch.ones(1, 2), 0.0)
    with pytest.raises(ValueError, match="not zero everywhere"):
        saliency_box(torch.zeros(1, 2))
