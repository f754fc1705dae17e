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


"""Every term against a slow loop that follows its equation, and the properties that all terms share."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_rrr.attribution.trace import Trace
from monai_rrr.objectives import (
    CrossModalEquivariance,
    MutualLearning,
    Nesting,
    Objective,
    TagClassification,
    VoxelSupervision,
    WithinModalEquivariance,
)
from monai_rrr.objectives.classification import tag_loss_by_modality
from monai_rrr.objectives.views import brain_at, pair_views
from monai_rrr.transforms.warp import RandomWarp, Warp

N, M, K, SIZE = 3, 4, 3, (6, 6, 4)
TERMS: dict[str, Any] = {
    "classification": TagClassification(),
    "within": WithinModalEquivariance(),
    "within_square": WithinModalEquivariance(distance="mean_square"),
    "cross": CrossModalEquivariance(),
    "cross_uniform": CrossModalEquivariance(weighting="uniform"),
    "cross_consensus": CrossModalEquivariance(weighting="consensus"),
    "cross_relative": CrossModalEquivariance(reduction="relative"),
    "cross_mean": CrossModalEquivariance(reduction="mean"),
    "mutual": MutualLearning(),
    "nesting": Nesting(),
}
MAP_TERMS = [name for name in TERMS if name.startswith(("within", "cross"))]
CROSS = [name for name in TERMS if name.startswith("cross")]


def make_warp(count: int = N, size=SIZE) -> Warp:
    flipped = torch.eye(3, 4)
    flipped[0, 0] = flipped[2, 2] = -1
    image = torch.zeros(count - 1, 1, *size)
    theta = torch.cat([flipped[None], RandomWarp(seed=2, exact=0.0, rotation=30.0)(image).theta])
    return Warp(theta, (True,) + (False,) * (count - 1))


def make_trace(maps: Tensor, logits: Tensor | None = None, reliability: Tensor | None = None) -> Trace:
    if logits is None:
        logits = maps.flatten(3).amax(3)
    if reliability is None:
        reliability = torch.tensor([[0.1, 0.2, 0.2], [0.2, 0.5, 0.6], [0.3, 0.2, 0.1], [0.4, 0.1, 0.1]])
    features = {"class_maps": maps, "reliability": reliability[: maps.shape[1]]}
    return Trace(nn.Identity(), tuple(features), torch.zeros(len(maps), maps.shape[1], *SIZE), logits, features)


def make_batch(warp: Warp | None, size=SIZE) -> dict[str, Any]:
    label = torch.tensor([[1.0, 1, 0], [1, 0, 0], [1, 1, 1]])
    slices = torch.stack([label, label, torch.zeros_like(label), label], 2)
    present = torch.tensor([[True, True, True, True], [True, False, True, True], [False, True, False, True]])
    brain = torch.zeros(2 * N, 1, *size, dtype=torch.bool)
    brain[..., 1:5, :, :] = True
    return {
        "warp": warp,
        "present": torch.cat([present] * 2),
        "class_label": torch.cat([label] * 2),
        "slice_label": torch.cat([slices, slices if warp is None else warp.slices(slices)]),
        "brain": brain,
    }


@pytest.fixture
def batch() -> dict[str, Any]:
    return make_batch(make_warp())


@pytest.fixture
def maps() -> Tensor:
    return (2 * torch.randn(2 * N, M, K, *SIZE)).requires_grad_(True)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(2 * N, M, K).requires_grad_(True)


def bce(z: Tensor, y: float) -> Tensor:
    return -F.logsigmoid(z if y else -z)


def lme(values: Tensor, r: float = 5.0) -> Tensor:
    return (r * values).exp().mean().log() / r


def views_of(maps: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    first, second = torch.sigmoid(maps).chunk(2)
    return batch["warp"](first), second, batch["warp"].validity(SIZE) & batch["brain"][N:]


def unit_distance(a: Tensor, b: Tensor, mask: Tensor, reduction: str) -> Tensor:
    a, b = a[mask[0]], b[mask[0]]
    if reduction == "relative":
        return ((a - b) ** 2).sum() / ((a**2).sum() + (b**2).sum())
    distance = 1 - (a * b).sum() / (a.norm() * b.norm())
    return {"cosine": distance, "sum": 2 * distance, "mean": 2 * distance / len(a)}[reduction]


def check_gradients(found: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
    pairs = [torch.autograd.grad(v, leaves, retain_graph=True, allow_unused=True) for v in (found, expected)]
    for one, two, leaf in zip(*pairs, leaves, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if one is None else one, zero if two is None else two, rtol=1e-4, atol=1e-6)


def test_within_modal_follows_the_equation(maps, batch):
    moved, second, mask = views_of(maps, batch)
    values = []
    for n, i, c in itertools.product(range(N), range(M), range(K)):
        if batch["present"][n, i] and batch["class_label"][n, c]:
            values.append(unit_distance(moved[n, i, c], second[n, i, c], mask[n], "relative"))
    check_gradients(WithinModalEquivariance()(make_trace(maps), batch), sum(values) / len(values), maps)


def test_within_modal_mean_square(maps, batch):
    moved, second, mask = views_of(maps, batch)
    values = []
    for n, i, c in itertools.product(range(N), range(M), range(K)):
        if batch["present"][n, i] and batch["class_label"][n, c]:
            values.append((moved[n, i, c] - second[n, i, c])[mask[n, 0]].square().mean())
    check_gradients(
        WithinModalEquivariance(distance="mean_square")(make_trace(maps), batch), sum(values) / len(values), maps
    )


def test_equivariance_gradient_reaches_both_sides(maps, batch):
    WithinModalEquivariance()(make_trace(maps), batch).backward()
    assert maps.grad[0, 0, 0].abs().max() > 0
    assert maps.grad[N, 0, 0].abs().max() > 0


@pytest.mark.parametrize("reduction", ["cosine", "sum", "mean", "relative"])
@pytest.mark.parametrize("weighting", ["reliability", "uniform"])
def test_cross_modal_follows_the_equation(maps, logits, batch, weighting, reduction):
    trace = make_trace(maps, logits)
    moved, second, mask = views_of(maps, batch)
    total, count = torch.zeros(()), 0
    for n, c in itertools.product(range(N), range(K)):
        modalities = [m for m in range(M) if batch["present"][n, m]]
        if not batch["class_label"][n, c] or len(modalities) < 2:
            continue
        count += 1
        pairs = list(itertools.permutations(modalities, 2))
        trust = {j: 1.0 if weighting == "uniform" else trace.features["reliability"][j, c] for j in modalities}
        norm = sum(trust[j] for _, j in pairs)
        weights = {(i, j): trust[j] / norm for i, j in pairs}
        assert float(sum(weights.values())) == pytest.approx(1.0, abs=1e-6)
        for i, j in pairs:
            one = unit_distance(moved[n, i, c], second[n, j, c].detach(), mask[n], reduction)
            two = unit_distance(second[n, i, c], moved[n, j, c].detach(), mask[n], reduction)
            gate_one, gate_two = float(logits[N + n, j, c] > 0), float(logits[n, j, c] > 0)
            total = total + weights[i, j] * 0.5 * (gate_one * one + gate_two * two)
    term = CrossModalEquivariance(weighting=weighting, reduction=reduction)
    check_gradients(term(trace, batch), total / count, maps, logits)


@pytest.mark.parametrize("reduction", ["cosine", "relative"])
def test_cross_modal_consensus(maps, logits, batch, reduction):
    trace = make_trace(maps, logits)
    trust = trace.features["reliability"]
    moved, second, mask = views_of(maps, batch)
    total, count = torch.zeros(()), 0
    for n, c in itertools.product(range(N), range(K)):
        modalities = [m for m in range(M) if batch["present"][n, m]]
        if not batch["class_label"][n, c] or len(modalities) < 2:
            continue
        count += 1
        norm = sum(trust[j, c] for _, j in itertools.permutations(modalities, 2))
        for i in modalities:
            others = [j for j in modalities if j != i]
            weight = sum(trust[j, c] for j in others) / norm
            for pupil, teacher, offset in ((moved, second, N), (second, moved, 0)):
                right = [j for j in others if logits[offset + n, j, c] > 0]
                if right:
                    mean = sum(trust[j, c] * teacher[n, j, c].detach() for j in right) / sum(trust[j, c] for j in right)
                    total = total + 0.5 * weight * unit_distance(pupil[n, i, c], mean, mask[n], reduction)
    term = CrossModalEquivariance(weighting="consensus", reduction=reduction)
    check_gradients(term(trace, batch), total / count, maps, logits)


@pytest.mark.parametrize("name", CROSS)
def test_a_teacher_receives_no_gradient_and_a_wrong_one_does_not_teach(name, maps, batch):
    """Only modality 1 is right: it teaches the others and learns nothing."""
    logits = torch.full((2 * N, M, K), -1.0)
    logits[:, 1] = 1.0
    TERMS[name](make_trace(maps, logits), batch).backward()
    assert maps.grad[:, 1].abs().max() == 0
    assert maps.grad[0, 0, 0].abs().max() > 0
    maps.grad = None
    value = TERMS[name](make_trace(maps, torch.full((2 * N, M, K), -1.0)), batch)
    assert value == 0
    value.backward()
    assert maps.grad.abs().max() == 0


@pytest.mark.parametrize("name", CROSS)
def test_equal_up_to_amplitude(name, batch):
    """CM(lambda a, a) is 0 for the kinds that ignore amplitude; all kinds are 0 for equal maps."""
    batch["warp"] = Warp(torch.eye(3, 4).repeat(N, 1, 1), (True,) * N)
    evidence = 0.9 * torch.rand(2 * N, 1, K, *SIZE).chunk(2)[0].repeat(2, M, 1, 1, 1, 1) + 0.05
    equal = TERMS[name](make_trace(torch.logit(evidence), torch.ones(2 * N, M, K)), batch)
    assert float(equal) == pytest.approx(0.0, abs=1e-6)
    scale = torch.tensor([1.0, 0.5, 0.3, 0.8])[None, :, None, None, None, None]
    scaled = TERMS[name](make_trace(torch.logit(evidence * scale), torch.ones(2 * N, M, K)), batch)
    if name == "cross_relative":
        assert scaled > 0.01
    elif name != "cross_consensus":
        assert float(scaled) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", CROSS)
def test_cross_modal_is_within_its_bounds(name, maps, batch):
    value = TERMS[name](make_trace(maps, torch.ones(2 * N, M, K)), batch).detach()
    assert 0 <= float(value) <= 1


def test_reduction_as_released_is_practically_inert(maps, batch):
    trace = make_trace(maps, torch.ones(2 * N, M, K))
    batch["warp"] = Warp(torch.eye(3, 4).repeat(N, 1, 1), (True,) * N)
    cosine, total, mean = (CrossModalEquivariance(reduction=r)(trace, batch) for r in ("cosine", "sum", "mean"))
    torch.testing.assert_close(total, 2 * cosine)
    torch.testing.assert_close(mean, 2 * cosine / float(batch["brain"][0].sum()))


def test_mutual_learning_follows_the_equation(maps, logits, batch):
    values = []
    for b, i, j in itertools.product(range(2 * N), range(M), range(M)):
        if i != j and batch["present"][b, i] and batch["present"][b, j]:
            for c in range(K):
                p, q = torch.sigmoid(logits[b, j, c].detach() / 10), torch.sigmoid(logits[b, i, c] / 10)
                values.append(100 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()))
    check_gradients(MutualLearning()(make_trace(maps, logits), batch), sum(values) / len(values), logits)


@pytest.mark.parametrize("slice_weight", [0.0, 0.5])
def test_classification_follows_the_equation(maps, logits, batch, slice_weight):
    batch["class_label"][1, 2] = batch["class_label"][N + 1, 2] = torch.nan
    batch["slice_label"][1, 2] = batch["slice_label"][N + 1, 2] = torch.nan
    slab, slices = [], []
    for b, i, c in itertools.product(range(2 * N), range(M), range(K)):
        if batch["present"][b, i] and not batch["class_label"][b, c].isnan():
            slab.append(bce(logits[b, i, c], float(batch["class_label"][b, c])))
    for b, i, c, k in itertools.product(range(2 * N), range(M), range(K), range(SIZE[2])):
        if batch["present"][b, i] and not batch["slice_label"][b, c, k].isnan():
            score = lme(maps[b, i, c, ..., k][batch["brain"][b, 0, ..., k]])
            slices.append(bce(score, float(batch["slice_label"][b, c, k])))
    expected = sum(slab) / len(slab) + slice_weight * sum(slices) / len(slices)
    term = TagClassification(slice_weight=slice_weight, min_mass=0.0)
    check_gradients(term(make_trace(maps, logits), batch), expected, maps, logits)


def test_positive_tags_of_a_view_need_the_evidence_in_view(maps, logits):
    """The second view loses half of the field of view: where the evidence was there, only negative tags still hold."""
    theta = torch.eye(3, 4).repeat(N, 1, 1)
    theta[:, 0, 3] = 1.0
    batch = make_batch(Warp(theta, (False,) * N))
    batch["present"][:] = True
    kept = torch.full((2 * N, M, K, *SIZE), -20.0)
    kept[:, :, :, 4:] = 3.0
    lost = kept.flip(3)
    term = TagClassification(slice_weight=0.0)

    def expected(holds: bool) -> Tensor:
        values = [
            bce(logits[b, i, c], float(batch["class_label"][b, c]))
            for b, i, c in itertools.product(range(2 * N), range(M), range(K))
            if b < N or holds or not batch["class_label"][b, c]
        ]
        return sum(values) / len(values)

    torch.testing.assert_close(term(make_trace(kept, logits), batch), expected(True))
    torch.testing.assert_close(term(make_trace(lost, logits), batch), expected(False))
    everything = TagClassification(slice_weight=0.0, min_mass=0.0)
    torch.testing.assert_close(everything(make_trace(lost, logits), batch), expected(True))


def test_slices_without_brain_do_not_count(maps, logits, batch):
    batch["brain"][..., 0] = False
    term = TagClassification(min_mass=0.0)
    value = term(make_trace(maps, logits), batch)
    batch["slice_label"][..., 0] = torch.nan
    torch.testing.assert_close(term(make_trace(maps, logits), batch), value)


def test_classification_of_one_view(maps, logits):
    batch = make_batch(None)
    assert torch.isfinite(TagClassification()(make_trace(maps, logits), batch))


def test_nesting_follows_the_equation(maps, batch):
    a = torch.sigmoid(maps)
    values = []
    for b, i in itertools.product(range(2 * N), range(M)):
        if batch["present"][b, i]:
            step = sum((a[b, i, c + 1] - a[b, i, c]).clamp(min=0) for c in range(K - 1))
            values.append(step[batch["brain"][b, 0]])
    check_gradients(Nesting()(make_trace(maps), batch), torch.cat(values).mean(), maps)


def test_tag_loss_by_modality(logits, batch):
    batch["class_label"][0, 0] = torch.nan
    value, count = tag_loss_by_modality(logits, batch["class_label"], batch["present"])
    assert not value.requires_grad
    for m, c in itertools.product(range(M), range(K)):
        rows = [b for b in range(2 * N) if batch["present"][b, m] and not batch["class_label"][b, c].isnan()]
        assert count[m, c] == len(rows)
        expected = sum(float(bce(logits[b, m, c], float(batch["class_label"][b, c])).detach()) for b in rows)
        assert float(value[m, c]) == pytest.approx(expected / len(rows), rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_terms_are_finite_scalars_with_gradient(name, maps, batch):
    value = TERMS[name](make_trace(maps), batch)
    assert value.shape == ()
    value.backward()
    assert torch.isfinite(maps.grad).all()
    assert maps.grad.abs().max() > 0
    absent = ~batch["present"]
    assert maps.grad[absent].abs().max() == 0, "an absent modality has no part"


@pytest.mark.parametrize("name", TERMS)
def test_an_all_negative_batch_is_finite_and_has_no_map_loss(name, maps, batch):
    batch["class_label"].zero_()
    batch["slice_label"].zero_()
    value = TERMS[name](make_trace(maps), batch)
    assert torch.isfinite(value)
    if name in MAP_TERMS:
        assert value == 0
        value.backward()
        assert maps.grad.abs().max() == 0


@pytest.mark.parametrize("name", MAP_TERMS)
def test_negative_and_unknown_classes_have_no_map_loss(name, maps, batch):
    batch["class_label"][:, 1] = 0.0
    batch["class_label"][:, 2] = torch.nan
    TERMS[name](make_trace(maps, torch.ones(2 * N, M, K)), batch).backward()
    assert maps.grad[:, :, 0].abs().max() > 0
    assert maps.grad[:, :, 1:].abs().max() == 0


@pytest.mark.parametrize("name", [*CROSS, "mutual"])
def test_one_modality_learns_from_nobody(name, maps, batch):
    batch["present"][:] = torch.tensor([False, True, False, False])
    value = TERMS[name](make_trace(maps), batch)
    assert value == 0
    alone = make_trace(maps[:, 1:2])
    batch["present"] = torch.ones(2 * N, 1, dtype=torch.bool)
    assert TERMS[name](alone, batch) == 0


@pytest.mark.parametrize("name", TERMS)
def test_a_missing_modality_is_the_result_without_it(name, maps, logits, batch):
    batch["present"][:, 2] = False
    batch["warp"] = Warp(torch.eye(3, 4).repeat(N, 1, 1), (True,) * N)
    whole = make_trace(maps, logits)
    kept = [0, 1, 3]
    part = make_trace(maps[:, kept], logits[:, kept], whole.features["reliability"][kept])
    torch.testing.assert_close(
        TERMS[name](part, {**batch, "present": batch["present"][:, kept]}), TERMS[name](whole, batch)
    )


@pytest.mark.parametrize("name", TERMS)
def test_permuting_modalities_changes_nothing(name, maps, logits, batch):
    order = [2, 0, 3, 1]
    trace = make_trace(maps, logits)
    permuted = make_trace(maps[:, order], logits[:, order], trace.features["reliability"][order])
    torch.testing.assert_close(
        TERMS[name](permuted, {**batch, "present": batch["present"][:, order]}), TERMS[name](trace, batch)
    )


@pytest.mark.parametrize("name", TERMS)
def test_zero_padding_changes_nothing(name, maps, logits, batch):
    batch = make_batch(Warp(make_warp().theta[:1].repeat(N, 1, 1), (True,) * N))
    value = TERMS[name](make_trace(maps, logits), batch)
    pads = (0, 0, 3, 3, 2, 2)
    padded = {**batch, "brain": F.pad(batch["brain"], pads)}
    torch.testing.assert_close(TERMS[name](make_trace(F.pad(maps, pads), logits), padded), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_a_sample_without_brain_in_view_does_not_count(name, maps, logits, batch):
    value = TERMS[name](make_trace(maps, logits), batch)
    batch["brain"][:] = False
    empty = TERMS[name](make_trace(maps, logits), batch)
    assert torch.isfinite(empty)
    if name in MAP_TERMS:
        assert empty == 0
        assert value > 0


@pytest.mark.parametrize("name", TERMS)
def test_the_modality_and_class_axes_of_a_pooled_resolution(name, logits, batch):
    """Maps at half the in-plane resolution are compared there; mask and warp follow."""
    low = torch.randn(2 * N, M, K, 3, 3, 4).requires_grad_(True)
    TERMS[name](make_trace(low, logits), batch).backward()
    assert torch.isfinite(low.grad if low.grad is not None else logits.grad).all()


def test_within_modal_is_zero_for_a_network_that_commutes(batch):
    image = torch.randn(N, M, *SIZE)
    warp = RandomWarp(seed=5, exact=1.0)(image)
    conv = nn.Conv3d(M, M * K, 1)
    maps = conv(torch.cat([image, warp(image)])).unflatten(1, (M, K))
    batch["warp"] = warp
    value = WithinModalEquivariance()(make_trace(maps), batch)
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_weight_zero_is_an_absent_term_bit_for_bit(name, maps, logits, batch):
    results = []
    for objective in (
        Objective({"nesting": Nesting(), "other": TERMS[name]}, {"other": 0.0}),
        Objective({"nesting": Nesting()}),
    ):
        total, values = objective(make_trace(maps, logits), batch)
        results.append((total, *torch.autograd.grad(total, [maps, logits], allow_unused=True)))
        assert set(values) == {"nesting"}
    for one, two in zip(*results, strict=True):
        assert (one is None and two is None) or torch.equal(one, two)


def test_layers_that_are_recorded():
    assert TagClassification().layers == ("class_maps",)
    assert MutualLearning().layers == ()
    assert CrossModalEquivariance().layers == ("class_maps", "reliability")
    assert CrossModalEquivariance(weighting="uniform").layers == ("class_maps",)


def test_views():
    batch = make_batch(make_warp())
    pair = pair_views(torch.rand(2 * N, 2, *SIZE), batch)
    assert pair.moved.shape == pair.second.shape == (N, 2, *SIZE)
    assert pair.mask.shape == (N, 1, *SIZE)
    assert pair.mask.dtype == torch.bool
    assert brain_at(batch, (3, 3, 4)).shape == (2 * N, 1, 3, 3, 4)
    with pytest.raises(ValueError, match=r"compares two views: set prepare_batch to monai_rrr\.engines\.PrepareViews"):
        pair_views(torch.rand(2 * N, 2, *SIZE), {**batch, "warp": None})


def test_full_supervision_reads_masks(maps, logits, batch):
    label = torch.zeros(2 * N, K, *SIZE)
    label[:, :, 2:4, 2:4] = 1
    good = torch.where(label.bool(), 8.0, -8.0)[:, None].expand(-1, M, -1, -1, -1, -1)
    term, with_label = VoxelSupervision(), {**batch, "label": label}
    right, wrong = (term(make_trace(sign * good, logits), with_label) for sign in (1, -1))
    assert right < 0.02, "nested regions do not exclude each other"
    assert wrong > 5
    term(make_trace(maps, logits), with_label).backward()
    assert maps.grad[~batch["present"]].abs().max() == 0
    assert maps.grad[..., 0, :, :].abs().max() == 0, "outside the brain"
    with pytest.raises(ValueError, match="full supervision needs masks as 'label', got a batch with"):
        term(make_trace(maps, logits), batch)


def test_exception():
    with pytest.raises(ValueError, match="weighting must be reliability, uniform or consensus, got 'mean'"):
        CrossModalEquivariance(weighting="mean")
    with pytest.raises(ValueError, match="reduction must be cosine, sum, mean or relative, got 'l2'"):
        CrossModalEquivariance(reduction="l2")
    with pytest.raises(ValueError, match="kind must be one of"):
        WithinModalEquivariance(distance="l1")
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        MutualLearning(temperature=0.0)
    with pytest.raises(ValueError, match=r"min_mass must be in \[0, 1\], got 2\.0"):
        TagClassification(min_mass=2.0)
    with pytest.raises(ValueError, match=r"slice_weight must be at least 0, got -1\.0"):
        TagClassification(slice_weight=-1.0)
    assert math.isfinite(TagClassification().sharpness)
