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

"""Terms on annotators and prototypes, against loops that follow the equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_rrr.attribution import Trace
from monai_rrr.losses import SoftDiceCELoss
from monai_rrr.objectives import (
    AnnotatorMixture,
    AnnotatorSegmentation,
    ConsensusSegmentation,
    KernelDiversity,
    KernelTie,
    PrototypeContrast,
    PrototypeDistance,
    SignedDistance,
    TendencyParsimony,
)
from monai_rrr.objectives.voxel_sample import sampled_voxels

B, R, C, M, K, E, SIZE, N = 2, 3, 4, 2, 3, 5, (4, 4, 2), 24
SAMPLED = [AnnotatorMixture(), KernelTie(), PrototypeContrast(), PrototypeDistance(), TendencyParsimony()]


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.fixture
def trace() -> Trace:
    features = {
        "annotator_logits": torch.randn(B, R, C, *SIZE, dtype=torch.float64),
        "embedding": F.normalize(torch.randn(B, E, 2, 2, 1, dtype=torch.float64), dim=1),
        "signed_distance": torch.randn(B, 3, *SIZE, dtype=torch.float64),
        "kernels": unit(R, C, M, E),
        "scale": torch.tensor(3.0).double(),
        "shared_prototypes": unit(C, K, E),
        "tendency_prototypes": unit(R, C, M, E),
        "prior": torch.tensor([0.4, 0.3, 0.2, 0.1]).double(),
    }
    features["tendency_prototypes"][1, 2] = 0  # not there yet
    logits = torch.randn(B, C, *SIZE, dtype=torch.float64)
    leaves = {name: value.requires_grad_(name != "prior") for name, value in features.items()}
    image = torch.zeros(B, 1, *SIZE)
    return Trace(nn.Identity(), tuple(features), image, logits.requires_grad_(), leaves)


@pytest.fixture
def batch() -> dict[str, Any]:
    drawn = torch.randint(-1, C, (B, R, *SIZE))
    annotated = torch.tensor([[True, True, False], [True, True, False]])
    drawn[:, 2] = -1
    stratum = torch.tensor([0, 1, 2, -1]).repeat(N // 4)
    voxel = torch.stack([torch.randint(0, n, (N,)) for n in (B, *SIZE)], 1)
    return {
        "annotations": drawn,
        "annotated": annotated,
        "annotator_weight": torch.tensor([1.0, 3.0, 2.0]),
        "consensus": torch.randn(B, C, *SIZE).softmax(1),
        "consensus_label": torch.randint(0, C, (B, *SIZE)),
        "signed_distance": 8 * torch.rand(B, 3, *SIZE),
        "voxel": voxel,
        "voxel_stratum": stratum,
        "samples": {},
    }


def drawn_voxels(trace: Trace, batch: dict[str, Any]) -> list[tuple[Tensor, list[int], int, int, tuple[int, ...]]]:
    """Embedding, what each annotator drew, the consensus, the stratum and the place of the voxels that count."""
    found = []
    for (b, d, h, w), stratum in zip(batch["voxel"].tolist(), batch["voxel_stratum"].tolist(), strict=True):
        if stratum >= 0:
            g = trace.features["embedding"][b, :, d // 2, h // 2, w // 2]
            label = [int(batch["annotations"][b, r, d, h, w]) for r in range(R)]
            found.append((g, label, int(batch["consensus_label"][b, d, h, w]), stratum, (b, d, h, w)))
    return found


def mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean().detach())


def own_prototypes(trace: Trace, label: list[int], consensus: int) -> list[Tensor]:
    away = [(r, c) for r, c in enumerate(label) if c >= 0 and c != consensus]
    prototypes = trace.features["tendency_prototypes"]
    found = (
        [p for r, c in away for p in prototypes[r, c]] if away else list(trace.features["shared_prototypes"][consensus])
    )
    return [p for p in found if float(p.detach().norm()) > 0]


def test_segmentation(trace: Trace, batch: dict[str, Any]) -> None:
    each = []
    loss = SoftDiceCELoss()
    for b in range(B):
        parts, weights = [], []
        for r in range(2):
            y = batch["annotations"][b, r]
            target = F.one_hot(y.clamp(min=0), C).movedim(-1, 0)[None]
            parts.append(loss(trace.features["annotator_logits"][b, r][None], target, (y >= 0)[None, None]))
            weights.append(float(batch["annotator_weight"][r]))
        each.append((weights[0] * parts[0] + weights[1] * parts[1]) / sum(weights))
    found = AnnotatorSegmentation()(trace, batch)
    assert float(found.detach()) == pytest.approx(mean(each))
    per_case = {**batch, "annotator_weight": batch["annotator_weight"].expand(B, R)}
    assert torch.equal(AnnotatorSegmentation()(trace, per_case), found)
    found.backward()
    assert float(trace.features["annotator_logits"].grad[:, 2].abs().sum()) == 0
    nobody = AnnotatorSegmentation()(trace, {**batch, "annotated": torch.zeros(B, R).bool()})
    assert float(nobody.detach()) == 0


def test_consensus_and_distance(trace: Trace, batch: dict[str, Any]) -> None:
    expected = SoftDiceCELoss()(trace.logits, batch["consensus"])
    assert torch.equal(ConsensusSegmentation()(trace, batch), expected)
    apart = (trace.features["signed_distance"] - batch["signed_distance"]).abs() / 8
    smooth = torch.where(apart < 1, apart.square() / 2, apart - 0.5)
    assert float(SignedDistance()(trace, batch).detach()) == pytest.approx(float(smooth.mean().detach()))


def test_parsimony(trace: Trace, batch: dict[str, Any]) -> None:
    values = []
    for _, label, consensus, _, (b, d, h, w) in drawn_voxels(trace, batch):
        if all(c in (-1, consensus) for c in label):
            for r in range(R):
                if label[r] >= 0:
                    z = trace.features["annotator_logits"][b, r, :, d, h, w] - trace.logits[b, :, d, h, w]
                    values.append(z.abs().sum())
    assert values
    assert float(TendencyParsimony()(trace, batch).detach()) == pytest.approx(mean(values))


def test_mixture(trace: Trace, batch: dict[str, Any]) -> None:
    values = []
    for g, label, _, stratum, (b, d, h, w) in drawn_voxels(trace, batch):
        seen = [r for r in range(R) if label[r] >= 0]
        if stratum == 2 or not seen:
            continue
        score = {0: trace.features["shared_prototypes"].flatten(0, 1) @ g}
        score |= {r + 1: trace.features["tendency_prototypes"][r].flatten(0, 1) @ g for r in seen}
        there = {r: s[s != 0].max() for r, s in score.items()}
        alpha = {r: trace.features["prior"][r] * (s / 0.1).exp() for r, s in there.items()}
        total = sum(alpha.values())
        logits = torch.cat([trace.logits[b][None], trace.features["annotator_logits"][b]])[..., d, h, w]
        p = sum(alpha[r] / total * logits[r].softmax(0) for r in alpha)
        values.append(torch.stack([-p[label[r]].log() for r in seen]).mean())
    assert float(AnnotatorMixture()(trace, batch).detach()) == pytest.approx(mean(values))


@pytest.mark.parametrize("shuffled", [False, True])
def test_tie(trace: Trace, batch: dict[str, Any], shuffled: bool) -> None:
    prototypes, kernels, values = trace.features["tendency_prototypes"].detach(), trace.features["kernels"], []
    if shuffled:
        prototypes = torch.stack([prototypes[2], prototypes[0], prototypes[1]])
    for g, label, consensus, _, _ in drawn_voxels(trace, batch):
        for r, c in enumerate(label):
            if c >= 0 and c != consensus and float(prototypes[r, c].norm()) > 0:
                q = (prototypes[r, c] @ g / 0.1).softmax(0).detach()
                a = (3.0 * kernels[r, c] @ g).log_softmax(0)
                values.append((q * (q.log() - a)).sum())
    direct = [
        1 - kernels[r, c, m] @ prototypes[r, c, m]
        for r in range(2)
        for c in range(C)
        for m in range(M)
        if float(prototypes[r, c, m].norm()) > 0
    ]
    found = KernelTie(shuffled=shuffled)(trace, batch)
    assert float(found.detach()) == pytest.approx(mean(values) + 0.1 * mean(direct))
    found.backward()
    assert trace.features["tendency_prototypes"].grad is None or not trace.features["tendency_prototypes"].grad.any()
    assert float(trace.features["kernels"].grad[2].abs().sum()) == 0, "annotators who drew nothing"


def test_contrast_and_distance(trace: Trace, batch: dict[str, Any]) -> None:
    prototypes = [*trace.features["shared_prototypes"].flatten(0, 1)]
    prototypes += [p for p in trace.features["tendency_prototypes"].flatten(0, 2) if float(p.detach().norm()) > 0]
    contrast, distance = [], []
    for g, label, consensus, _, _ in drawn_voxels(trace, batch):
        own = own_prototypes(trace, label, consensus)
        if own:
            near = sum((p @ g / 0.1).exp() for p in own)
            contrast.append(-(near / sum((p @ g / 0.1).exp() for p in prototypes)).log())
            distance.append((1 - torch.stack([p @ g for p in own]).max()).square())
    assert float(PrototypeContrast()(trace, batch).detach()) == pytest.approx(mean(contrast))
    assert float(PrototypeDistance()(trace, batch).detach()) == pytest.approx(mean(distance))


def test_diversity(trace: Trace, batch: dict[str, Any]) -> None:
    kernels = trace.features["kernels"]
    total = 0.0
    for r in range(R):
        for c in range(C):
            pairs = [(i, j) for i in range(M) for j in range(M) if i != j]
            total += sum(
                max(0.0, float((kernels[r, c, i] @ kernels[r, c, j]).detach()) - 0.2) ** 2 for i, j in pairs
            ) / len(pairs)
    assert float(KernelDiversity(margin=0.2)(trace, batch).detach()) == pytest.approx(total)


@pytest.mark.parametrize("term", SAMPLED, ids=lambda term: type(term).__name__)
def test_gradient_by_finite_differences(term: Any, trace: Trace, batch: dict[str, Any]) -> None:
    names = {"annotator_logits", "embedding", "kernels", "scale"} & set(term.layers)
    if isinstance(term, TendencyParsimony):
        names.remove("embedding")  # recorded for the voxels, and not compared
    leaves = [trace.features[name] for name in sorted(names)]
    value = term(trace, batch)
    grads = torch.autograd.grad(value, leaves)
    for leaf, grad in zip(leaves, grads, strict=True):
        direction = torch.randn_like(leaf)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * 1e-6 * direction)
                # the share of the prototypes is a constant for the gradient: keep it where the tie compares with it
                batch["samples"].clear()
                values.append(float(term(trace, batch)))
                leaf.sub_(sign * 1e-6 * direction)
        if isinstance(term, KernelTie) and leaf is trace.features["embedding"]:
            continue
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float((grad * direction).sum()), abs=1e-6, rel=1e-5)


@pytest.mark.parametrize("term", SAMPLED, ids=lambda term: type(term).__name__)
def test_nothing_to_compare_is_0_with_a_gradient_of_0(term: Any, trace: Trace, batch: dict[str, Any]) -> None:
    batch["voxel_stratum"] = torch.full((N,), -1)
    with torch.no_grad():
        for name in ("shared_prototypes", "tendency_prototypes"):
            trace.features[name].zero_()
    value = term(trace, batch)
    value.backward()
    assert float(value.detach()) == 0
    assert all(
        bool(torch.isfinite(f.grad).all()) and not f.grad.any() for f in trace.features.values() if f.grad is not None
    )


def test_voxels_are_looked_up_once(trace: Trace, batch: dict[str, Any]) -> None:
    assert sampled_voxels(trace, batch) is sampled_voxels(trace, batch)


def test_exception(trace: Trace, batch: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"prepare_batch to monai_rrr.engines.PrepareAnnotations"):
        PrototypeContrast()(trace, {"annotations": batch["annotations"]})
    with pytest.raises(ValueError, match=r"annotations .* do not match logits"):
        AnnotatorSegmentation()(trace, {**batch, "annotations": batch["annotations"][:, :2]})
    with pytest.raises(ValueError, match=r"distances .* do not match the batch's"):
        SignedDistance()(trace, {**batch, "signed_distance": torch.zeros(B, 2, *SIZE)})


def test_finite_in_half_precision(trace: Trace, batch: dict[str, Any]) -> None:
    half = Trace(
        trace.network,
        trace.layers,
        trace.image,
        1e3 * trace.logits.detach().float(),
        {name: value.detach().float() for name, value in trace.features.items()},
    )
    half.features["annotator_logits"].mul_(1e3)  # as confident as fp16 logits can make it
    for term in SAMPLED:
        batch["samples"].clear()
        assert math.isfinite(float(term(half, batch)))


@pytest.mark.parametrize("make", [ConsensusSegmentation, TendencyParsimony, AnnotatorMixture])
def test_the_consensus_may_be_a_layer(make: Any, trace: Trace, batch: dict[str, Any]) -> None:
    """For networks that return something else first, such as class scores."""
    expected = make()(trace, batch)
    other = Trace(
        *(trace.network, (*trace.layers, "z"), trace.image, torch.zeros(B, 4, 3)),
        features={**trace.features, "z": trace.logits},
    )
    assert make(consensus="z").layers == (*make().layers, "z")
    torch.testing.assert_close(make(consensus="z")(other, {**batch, "samples": {}}), expected)


EVERY = [*SAMPLED, AnnotatorSegmentation(), ConsensusSegmentation(), SignedDistance()]


@pytest.mark.parametrize("term", EVERY, ids=lambda term: type(term).__name__)
def test_a_batch_that_nobody_drew_gives_exactly_nothing(term: Any, trace: Trace, batch: dict[str, Any]) -> None:
    blank = {
        **batch,
        "annotations": torch.full_like(batch["annotations"], -1),
        "annotated": torch.zeros_like(batch["annotated"]),
        "consensus": torch.zeros_like(batch["consensus"]),
        "voxel_stratum": torch.full_like(batch["voxel_stratum"], -1),
    }
    value = term(trace, blank)
    assert value.item() == 0
    value.backward()
    leaves = [trace.logits, *trace.features.values()]
    assert all(leaf.grad is None or not leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("term", [ConsensusSegmentation(), SignedDistance()], ids=lambda term: type(term).__name__)
def test_cases_that_nobody_drew_do_not_count(term: Any, trace: Trace, batch: dict[str, Any]) -> None:
    """The value is that of the first case alone."""
    mixed = {**batch, "annotated": batch["annotated"] * torch.tensor([[True], [False]])}
    mixed["consensus"] = batch["consensus"] * torch.tensor([1.0, 0.0])[:, None, None, None, None]
    features = {"signed_distance": trace.features["signed_distance"][:1]}
    alone = Trace(trace.network, tuple(features), trace.image[:1], trace.logits[:1], features)
    first = {key: value[:1] for key, value in mixed.items() if key in ("annotated", "consensus", "signed_distance")}
    torch.testing.assert_close(term(trace, mixed), term(alone, first))
