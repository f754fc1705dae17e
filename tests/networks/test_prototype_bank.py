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

"""The prototype bank: balanced assignment, moving means on the sphere, a queue, and a push to what is real."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.networks.blocks.prototype_bank import PrototypeBank
from monai_rrr.networks.blocks.sinkhorn import sinkhorn

G, K, E = 3, 2, 4


def points(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, E, generator=torch.Generator().manual_seed(seed)), dim=1)


def make(**options: int) -> PrototypeBank:
    bank = PrototypeBank(G, K, E, **{"queue": 32, "newest": 16, "least": 4, **options})
    bank.prototype.copy_(points(G * K, 9).unflatten(0, (G, K)))
    return bank


def member_of(group: int, count: int) -> Tensor:
    member = torch.zeros(G, count, dtype=torch.bool)
    member[group] = True
    return member


def test_sinkhorn_marginals() -> None:
    similarity = torch.rand(2, 12, 3, dtype=torch.float64)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1, 5:] = False
    share = sinkhorn(similarity, valid, iterations=200)
    assert torch.allclose(share.sum(2), valid.double())
    expected = torch.tensor([[4.0] * 3, [5 / 3] * 3]).double()
    assert torch.allclose(share.sum(1), expected, atol=1e-3)
    three = sinkhorn(similarity, valid)
    assert torch.allclose(three.sum(2), valid.double()), "the samples' sums are exact at any time"


def test_sinkhorn_against_the_textbook() -> None:
    similarity = torch.rand(5, 3, dtype=torch.float64)
    kernel = (similarity / 0.05).exp()
    for _ in range(3):
        kernel = kernel / kernel.sum(0)
        kernel = kernel / kernel.sum(1, keepdim=True)
    found = sinkhorn(similarity[None], torch.ones(1, 5, dtype=torch.bool))
    assert torch.allclose(found[0], kernel)


def test_sinkhorn_is_finite_in_half_precision_and_for_empty_groups() -> None:
    similarity = torch.tensor([[[1.0, -1.0], [1.0, -1.0]], [[0.5, 0.5], [0.1, 0.2]]]).half()
    valid = torch.tensor([[True, True], [False, False]])
    share = sinkhorn(similarity, valid)
    assert share.dtype == torch.float32
    assert bool(torch.isfinite(share).all())
    assert float(share[1].abs().sum()) == 0


@pytest.mark.parametrize(
    ("shape", "valid", "options", "message"),
    [
        ((2, 3), (2, 3), {}, "expected similarity G n K and valid G n"),
        ((1, 2, 3), (1, 3), {}, "expected similarity G n K and valid G n"),
        ((1, 2, 3), (1, 2), {"epsilon": 0.0}, "epsilon must be positive"),
        ((1, 2, 3), (1, 2), {"iterations": 0}, "iterations at least 1"),
    ],
)
def test_sinkhorn_exception(
    shape: tuple[int, ...], valid: tuple[int, ...], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(torch.zeros(shape), torch.ones(valid, dtype=torch.bool), **options)  # type: ignore[arg-type]


def test_no_parameters() -> None:
    assert list(make().parameters()) == []


def test_moves_on_the_sphere_as_written_and_leaves_absent_groups_alone() -> None:
    bank, before, seen = make(), make().prototype, points(6)
    bank.observe(seen, member_of(1, 6), momentum=0.5)
    assert torch.equal(bank.prototype[[0, 2]], before[[0, 2]])
    assert torch.allclose(bank.prototype.norm(dim=-1), torch.ones(G, K))
    recent = seen.flip(0)
    share = sinkhorn((recent @ before[1].T)[None], torch.ones(1, 6, dtype=torch.bool))[0]
    for k in range(K):
        mean = (share[:, k : k + 1] * recent).sum(0) / share[:, k].sum()
        expected = 0.5 * before[1, k] + 0.5 * mean
        assert torch.allclose(bank.prototype[1, k], expected / expected.norm(), atol=1e-6)


def test_too_few_embeddings_move_nothing_but_are_remembered() -> None:
    bank, before = make(), make().prototype
    bank.observe(points(3), member_of(0, 3), momentum=0.5)
    assert torch.equal(bank.prototype, before)
    bank.observe(points(1, 5), member_of(0, 1), momentum=0.5)
    assert not torch.equal(bank.prototype[0], before[0])


def test_queue_is_first_in_first_out() -> None:
    bank = make()
    seen = points(80)
    for part in seen.split(16):
        bank.observe(part, member_of(2, 16))
    assert bank.entered.tolist() == [0, 0, 80]
    assert torch.equal(bank.queue[2, :16], seen[64:])
    assert torch.equal(bank.queue[2, 16:32], seen[48:64])
    assert float(bank.queue[:2].abs().sum()) == 0


def test_at_most_so_many_at_once() -> None:
    bank = make()
    bank.observe(points(20), member_of(0, 20), most=5)
    assert bank.entered.tolist() == [5, 0, 0]
    assert torch.equal(bank.queue[0, :5], points(20)[:5])


def test_starts_by_k_means() -> None:
    bank = PrototypeBank(G, K, E, queue=32, newest=16, least=4)
    assert bank.initialize() == 0
    clusters = F.normalize(torch.eye(E)[[0, 1]].repeat(6, 1) + 0.05 * points(12), dim=1)
    bank.observe(clusters, member_of(1, 12), momentum=0.9)
    assert float(bank.prototype.abs().sum()) == 0, "nothing there, nothing to move"
    assert bank.initialize() == 1
    assert (bank.prototype[1] @ torch.eye(E)[:2].T).amax(1).min() > 0.95
    assert float((bank.prototype[1, 0] * bank.prototype[1, 1]).sum()) < 0.5
    assert float(bank.prototype[[0, 2]].abs().sum()) == 0
    assert bank.initialize() == 0


def test_unused_prototypes_are_replaced_by_the_oddest_embedding() -> None:
    bank = PrototypeBank(1, 2, E, queue=32, newest=8, least=2, patience=3)
    bank.prototype.copy_(torch.stack([torch.eye(E)[0], -torch.eye(E)[0]])[None])
    seen = F.normalize(torch.eye(E)[0] + 0.3 * points(8), dim=1)
    for step in range(3):
        assert bank.unused[0].tolist() == [0, step]
        bank.observe(seen, torch.ones(1, 8, dtype=torch.bool), momentum=0.99)
    assert bank.unused[0].tolist() == [0, 0]
    assert any(torch.allclose(bank.prototype[0, 1], point) for point in seen)


def source_of(case: int, count: int, step: int = 5) -> Tensor:
    source = torch.zeros(count, 7, dtype=torch.int64)
    source[:, 0] = case
    source[:, 4:] = step * torch.arange(count)[:, None]
    return source


def test_push_finds_the_nearest_real_embedding_of_the_group() -> None:
    bank, before = make(), make().prototype
    parts = []
    for case in range(3):
        parts.append((points(30, case), torch.arange(30) % 2, source_of(case, 30)))
    bank.push(iter(parts))
    everything = torch.cat([part[0] for part in parts])
    group = torch.cat([part[1] for part in parts])
    source = torch.cat([part[2] for part in parts])
    for g in range(2):
        own = everything[group == g]
        cosine = before[g] @ own.T
        first = int(cosine.amax(1).argmax())
        assert torch.equal(bank.prototype[g, first], own[cosine[first].argmax()]), "the nearest of all"
        for k in range(K):
            place = int((everything == bank.prototype[g, k]).all(1).nonzero())
            assert group[place] == g
            assert torch.equal(bank.source[g, k], source[place])
            assert (bank.nearest_similarity[g, k].diff() <= 0).all()
            assert bank.nearest_similarity[g, k, 0] == pytest.approx(float(cosine[k].max()))
            assert bank.nearest_source[g, k, :, 0].bincount(minlength=3).max() <= 3
    assert float(bank.prototype[2].abs().sum()) == 0, "what can't be shown is cleared"
    assert bool((bank.source[2] == -1).all())


def test_push_never_takes_one_place_twice() -> None:
    bank = PrototypeBank(1, 2, E, queue=32, newest=16)
    bank.prototype.copy_(F.normalize(torch.eye(E)[0] + 0.01 * points(2), dim=1)[None])
    seen = F.normalize(torch.eye(E)[0] + 0.2 * points(6), dim=1)
    group = torch.zeros(6, dtype=torch.int64)
    bank.push([(seen, group, source_of(0, 6))])
    assert not torch.equal(bank.prototype[0, 0], bank.prototype[0, 1])
    bank.frozen.fill_(False)
    bank.push([(seen, group, source_of(0, 6, step=0))])
    assert sorted(bank.source[0, :, 0].tolist()) == [-1, 0], "all at one place: only one prototype stays"


def test_frozen() -> None:
    bank = make()
    bank.push([(points(12), torch.arange(12) % G, source_of(0, 12))])
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    bank.observe(points(16, 4), torch.ones(G, 16, dtype=torch.bool), momentum=0.5)
    assert bank.initialize() == 0
    for name, value in bank.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_random_directions_stay_and_stand_for_no_place() -> None:
    bank, other = make(), make()
    bank.randomize(3)
    other.randomize(3)
    torch.testing.assert_close(bank.prototype, other.prototype, rtol=0, atol=0)
    torch.testing.assert_close(bank.prototype.norm(dim=-1), torch.ones(bank.prototype.shape[:2]))
    before = bank.prototype.clone()
    count = 40
    bank.observe(points(count), torch.ones(len(before), count, dtype=torch.bool), 0.5)
    bank.initialize()
    bank.push([(points(count), torch.zeros(count, dtype=torch.int64), source_of(0, count))])
    assert torch.equal(bank.prototype, before)
    assert bool((bank.source == -1).all())


def test_exception() -> None:
    with pytest.raises(ValueError, match="expected embedding n 4 and member 3 n, got"):
        make().observe(points(5), torch.ones(2, 5, dtype=torch.bool))
