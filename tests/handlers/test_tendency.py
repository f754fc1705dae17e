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

"""Stages, prototypes and consensus during a training, and whether the annotators are learned."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.networks.nets import UNet
from torch import Tensor
from torch.utils.data import DataLoader

from monai_rrr.engines import PrepareAnnotations, explanation_update
from monai_rrr.handlers import (
    ConsensusEstimate,
    ConsensusUpdate,
    PrototypeUpdate,
    TendencySchedule,
    TendencyStages,
    TrustAnnotator,
    majority_consensus,
    vote_consensus,
)
from monai_rrr.inferers import explain_regions, tendency_maps, voxel_saliency_box
from monai_rrr.networks import AnnotatorTendencyNet
from monai_rrr.objectives import (
    AnnotatorMixture,
    AnnotatorSegmentation,
    ConsensusSegmentation,
    KernelDiversity,
    KernelTie,
    Objective,
    PrototypeContrast,
    PrototypeDistance,
    Ramp,
    SignedDistance,
    TendencyParsimony,
)
from monai_rrr.transforms import BandedConsensus, StapleConsensus

SIDE, C = 16, 3
EPOCHS = 40


def case(index: int) -> dict[str, Any]:
    """A ball in a ball; one annotator draws 1.5 mm more, one 1.5 mm less."""
    generator = torch.Generator().manual_seed(index)
    center = 6 + 4 * torch.rand(3, 1, 1, 1, generator=generator)
    radius = 4 + torch.rand(1, generator=generator)
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(SIDE))] * 3, indexing="ij"))
    distance = (grid - center).square().sum(0).sqrt()
    image = torch.stack([(distance < radius).float(), (distance < 0.6 * radius).float()])
    image = image + 0.2 * torch.randn(image.shape, generator=generator)

    def drawn(offset: float) -> Tensor:
        return torch.where(distance < 0.6 * radius + offset, 1, torch.where(distance < radius + offset, 2, 0))

    return {
        "image": image,
        "annotations": torch.stack([drawn(1.5), drawn(-1.5)]),
        "annotated": torch.tensor([True, True]),
        "case_id": f"case {index}",
    }


class Training:
    """A small training of everything, with what can be asked about it afterwards."""

    def __init__(self, epochs: int = EPOCHS, amp: bool = False, random: bool = False) -> None:
        torch.manual_seed(0)
        self.cases = [case(index) for index in range(6)]
        backbone = UNet(3, in_channels=2, out_channels=8, channels=(8, 16), strides=(2,), norm="batch")
        self.network = AnnotatorTendencyNet(
            ["a_more", "b_less"],
            num_classes=C,
            backbone=backbone,
            features=8,
            regions=2,
            width=16,
            slots=2,
            shared_slots=2,
            queue=1024,
        )
        self.prepare = PrepareAnnotations(num_classes=C, regions=((1, 2), (1,)), voxels=512)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.01)
        self.stages = TendencyStages(self.network, self.optimizer)
        self.bank = PrototypeUpdate(self.network, DataLoader(self.cases, batch_size=4), self.prepare, random=random)
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=DataLoader(self.cases, batch_size=3),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=objective(),
            prepare_batch=self.prepare,
            iteration_update=explanation_update,
            train_handlers=[self.stages, self.bank, ConsensusUpdate(self.network, self.cases)],
            decollate=False,
            amp=amp,
            amp_kwargs={"dtype": torch.bfloat16} if amp else None,
        )


def objective() -> Objective:
    terms = {
        "seg": AnnotatorSegmentation(),
        "cons": ConsensusSegmentation(),
        "mix": AnnotatorMixture(),
        "tie": KernelTie(),
        "ppc": PrototypeContrast(),
        "ppd": PrototypeDistance(),
        "div": KernelDiversity(),
        "par": TendencyParsimony(),
        "sdf": SignedDistance(),
    }
    weights = {
        "mix": Ramp(0.5, 0.2, 0.2),
        "tie": Ramp(0.1, 0.1, 0.4),
        "ppc": Ramp(0.05, 0.2, 0.2),
        "ppd": Ramp(0.01, 0.2, 0.2),
        "div": 0.01,
        "par": 0.01,
        "sdf": 0.2,
    }
    return Objective(terms, weights)


@pytest.fixture(scope="module")
def trained() -> Training:
    training = Training()
    training.trainer.run()
    return training


def dice(one: Tensor, other: Tensor) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_every_annotator_is_closer_to_its_own_version_than_the_consensus(trained: Training) -> None:
    unseen = [case(index) for index in range(100, 104)]
    maps = tendency_maps(trained.network, torch.stack([c["image"] for c in unseen]))
    label = maps.probability.argmax(2)
    for r in range(2):
        truth = [c["annotations"][r] > 0 for c in unseen]
        own = sum(dice(label[b, 1 + r] > 0, truth[b]) for b in range(4)) / 4
        consensus = sum(dice(label[b, 0] > 0, truth[b]) for b in range(4)) / 4
        assert own - consensus > 0.05, trained.network.annotators[r]
    volume = (label > 0).flatten(2).sum(2).float().mean(0)
    assert volume[1] > volume[2]
    assert float(maps.tendency[:, 0].mean()) > float(maps.tendency[:, 1].mean())
    assert torch.allclose(maps.who.sum(1), torch.ones_like(maps.who[:, 0]), atol=1e-5)
    assert torch.allclose(maps.share.sum(1), torch.ones_like(maps.who[:, 0]), atol=1e-5)


def test_prototypes_are_real_patches_of_the_one_who_drew_them(trained: Training) -> None:
    bank = trained.network.tendency_bank
    assert bool(bank.frozen.all())
    assert trained.bank.case_ids == [c["case_id"] for c in trained.cases]
    there = (bank.source[..., 0] >= 0).nonzero().tolist()
    assert len(there) >= 4
    for group, slot in there:
        index, annotator, label, consensus, *voxel = bank.source[group, slot].tolist()
        assert (annotator, label) == divmod(group, C)
        assert int(trained.cases[index]["annotations"][(annotator, *voxel)]) == label
        assert label != consensus
        assert float(bank.prototype[group, slot].norm()) == pytest.approx(1, abs=1e-5)


def test_who_drew_a_region_and_why(trained: Training) -> None:
    unseen = case(200)
    maps = tendency_maps(trained.network, unseen["image"][None])
    for r in range(2):
        regions, found = explain_regions(trained.network, maps, unseen["annotations"][r])
        assert regions.shape == unseen["image"].shape[1:]
        assert [region.voxels for region in found] == sorted((region.voxels for region in found), reverse=True)
        assert found[0].voxels == int((regions == 1).sum())
        assert found[0].annotator == r
        assert sum(found[0].posterior) == pytest.approx(1, abs=1e-5)
        assert 1 <= len(found[0].matches) <= 3
    emitted = explain_regions(trained.network, maps)[1][0]
    assert emitted.label in range(C)
    assert emitted.label_without in range(C)
    assert explain_regions(trained.network, maps, threshold=1.1)[1] == []
    box = voxel_saliency_box(trained.network, unseen["image"][None], (8, 8, 8), 0, 1)
    assert all(first <= 8 < last for first, last in box)
    two = tendency_maps(trained.network, torch.stack([unseen["image"]] * 2))
    with pytest.raises(ValueError, match="maps of one volume, got 2"):
        explain_regions(trained.network, two)


def test_prototypes_of_an_annotator_who_came_later(trained: Training) -> None:
    network = copy.deepcopy(trained.network)
    before = network.tendency_bank.prototype.clone()
    network.add_annotator("c_late")
    cases = [{**case(index)} for index in range(6)]
    for item in cases:
        late = torch.where(item["annotations"][1] > 0, 2, 0)  # tells no core
        item["annotations"] = torch.cat([item["annotations"], late[None]])
        item["annotated"] = torch.ones(3, dtype=torch.bool)
    PrototypeUpdate(network, DataLoader(cases, batch_size=3), trained.prepare).push()
    bank = network.tendency_bank
    assert torch.equal(bank.prototype[: 2 * C], before)
    group = 2 * C + 2
    assert bool((bank.source[group, :, 1] == 2).all())
    for index, annotator, label, consensus, *voxel in bank.source[group].tolist():
        assert int(cases[index]["annotations"][(annotator, *voxel)]) == label == 2
        assert consensus == 1


@pytest.mark.parametrize("start", [True, False])
def test_kernels_start_at_their_prototypes_and_change_no_output(start: bool) -> None:
    training, seen = Training(epochs=10), {}
    network, training.bank.start_kernels = training.network, start
    image = case(300)["image"][None]

    @torch.no_grad()
    def look(engine: Any, name: str) -> None:
        kernels = torch.stack([one.kernels() for one in network.tendencies])
        prototypes = network.tendency_bank.prototype.unflatten(0, (2, C))
        cosine = (kernels * prototypes).sum(-1)[prototypes.square().sum(-1) > 0]
        seen[name] = (cosine, network.eval()(image)[1])

    training.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), look, "before")
    training.trainer.add_event_handler(Events.ITERATION_STARTED(once=5), look, "after")
    training.trainer.add_event_handler(Events.ITERATION_STARTED(once=5), training.trainer.terminate)
    training.trainer.run()
    assert not len(seen["before"][0])  # stage 0: no prototype is there
    assert len(seen["after"][0]) >= 4
    assert bool((seen["after"][0] > 0.999).all()) == start
    assert torch.equal(seen["before"][1], seen["after"][1])


def test_stages_move_only_what_they_train() -> None:
    training = Training(epochs=10)
    network, seen = training.network, {}
    tendency = {id(p) for p in network.tendency_parameters()}

    def snapshot() -> list[Tensor]:
        return [p.detach().clone() for p in network.parameters()]

    def before(engine: Any) -> None:
        seen["before"] = snapshot()

    def after(engine: Any) -> None:
        moved = [not torch.equal(a, b) for a, b in zip(seen["before"], snapshot(), strict=True)]
        own = [id(p) in tendency for p in network.parameters()]
        stage = training.stages.schedule.stage((engine.state.iteration - 1) / 19)
        kernels = any(m for m, o in zip(moved, own, strict=True) if o)
        rest = any(m for m, o in zip(moved, own, strict=True) if not o)
        seen.setdefault(stage, set()).add((kernels, rest))
        assert network.backbone.training == (stage < 3)

    training.trainer.add_event_handler(Events.ITERATION_STARTED, before)
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, after)
    training.trainer.run()
    assert seen[0] == {(False, True)}
    assert seen[1] == seen[2] == {(True, True)}
    assert seen[3] == {(True, False)}
    assert not training.optimizer._optimizer_step_pre_hooks


def test_random_prototypes_are_a_control_that_nothing_moves() -> None:
    training = Training(epochs=5, random=True)
    training.trainer.run()
    for offset, bank in enumerate((training.network.shared_bank, training.network.tendency_bank)):
        expected = copy.deepcopy(bank)
        expected.randomize(offset)
        assert torch.equal(bank.prototype, expected.prototype)
        assert bool((bank.source == -1).all())


@pytest.mark.filterwarnings("ignore:.*GradScaler.*")  # 2026-11: MONAI makes a CUDA scaler on CPU, too
def test_mixed_precision_trains() -> None:
    training = Training(epochs=3, amp=True)
    training.trainer.run()
    assert training.trainer.state.iteration == 6
    assert getattr(training.trainer.state, "skipped", 0) == 0
    assert all(bool(torch.isfinite(p).all()) for p in training.network.parameters())


def test_a_skipped_step_moves_no_prototype_and_missing_voxels_are_named() -> None:
    training = Training()
    state = SimpleNamespace(output={"skipped": "loss"}, iteration=1, max_epochs=1, epoch_length=10)
    training.bank(SimpleNamespace(state=state))
    state.output = {}
    with pytest.raises(ValueError, match="no term looked at drawn voxels"):
        training.bank(SimpleNamespace(state=state))


def test_consensus_is_estimated_every_few_epochs() -> None:
    training, calls = Training(epochs=10), []

    def estimate(annotations: Any, prior: Any) -> tuple[list[Tensor], Tensor]:
        calls.append(training.trainer.state.epoch)
        assert all(bool((drawn[1] == -1).all()) for drawn in annotations[:1])
        assert all(torch.allclose(p.sum(0), torch.ones(SIDE, SIDE, SIDE)) for p in prior)
        return [torch.ones_like(p) / C for p in prior], torch.tensor([3.0, 1.0])

    training.cases[0]["annotated"] = torch.tensor([True, False])
    handler = ConsensusUpdate(training.network, training.cases, estimate, every=3, start=0.2)
    engine = SimpleNamespace(state=training.trainer.state)
    training.trainer.state.epoch_length = 2
    for epoch in range(1, 11):
        training.trainer.state.epoch = epoch
        training.trainer.state.iteration = 2 * (epoch - 1)
        handler(engine)
    assert calls == [4, 7, 10]
    assert float(training.cases[3]["consensus"].mean()) == pytest.approx(1 / C)
    assert training.network.rho.tolist() == [0.75, 0.25]
    assert training.network.prior_weight.tolist() == pytest.approx([1 / 3, 0.5, 1 / 6])
    bad = ConsensusUpdate(training.network, training.cases, lambda drawn, prior: ([p[:1] for p in prior], None))
    with pytest.raises(ValueError, match=r"consensus of case case 0 must be \(3, 16, 16, 16\), got \(1, 16, 16, 16\)"):
        bad.update()


GRID = {"spacing": (1.0, 1.0, 1.0), "num_classes": C, "regions": ((1, 2), (1,))}


@pytest.mark.parametrize(
    ("estimate", "certain", "rho"),
    [
        (vote_consensus, False, None),
        (majority_consensus, True, None),
        (BandedConsensus(**GRID, edges=(), diagonal=5.0, shares=True), False, 0.001),
        (BandedConsensus(**GRID, shares=True), False, 0.001),
        (StapleConsensus(**GRID), False, 0.001),
        (TrustAnnotator(1), True, 1.0),
    ],
    ids=["soft vote", "vote", "Dawid-Skene", "bands", "STAPLE", "trust"],
)
def test_every_estimate(estimate: ConsensusEstimate, certain: bool, rho: float | None) -> None:
    """Two annotators draw the same, one scatters."""
    training = Training()
    for item in training.cases:
        drawn = item["annotations"][0]
        scattered = torch.where(torch.rand(drawn.shape) < 0.1, 2, drawn)
        item["annotations"], item["annotated"] = torch.stack([scattered, drawn, drawn]), torch.ones(3, dtype=torch.bool)
    training.network = AnnotatorTendencyNet(
        ["a", "b", "c"], C, training.network.backbone, features=8, regions=2, width=16, slots=2, queue=1024
    )
    ConsensusUpdate(training.network, training.cases, estimate).update()
    for item in training.cases:
        assert torch.allclose(item["consensus"].sum(0), torch.ones(SIDE, SIDE, SIDE), atol=1e-5)
        assert not certain or set(item["consensus"].unique().tolist()) == {0, 1}
        assert dice(item["consensus"].argmax(0) > 0, item["annotations"][1] > 0) > 0.99
    found = training.network.rho
    assert float(found.sum()) == pytest.approx(1)
    assert float(found[1] - found[0]) >= rho if rho else torch.allclose(found, torch.full((3,), 1 / 3))
    batch = next(iter(DataLoader(training.cases, batch_size=2)))
    assert torch.equal(training.prepare(batch, "cpu")["consensus"], batch["consensus"])


def test_what_the_network_thinks_counts() -> None:
    """Untrained, it says each class everywhere; made sure of the background, it outweighs two annotators."""
    training = Training()
    with torch.no_grad():
        training.network.consensus_head.bias.copy_(torch.tensor([60.0, 0.0, 0.0]))
    ConsensusUpdate(training.network, training.cases, BandedConsensus(**GRID, iterations=1)).update()
    assert all(bool((item["consensus"].argmax(0) == 0).all()) for item in training.cases)


def test_votes_and_trust_where_voxels_are_missing() -> None:
    drawn, prior = torch.tensor([[0, 1, 2, -1], [1, -1, 2, -1]]).reshape(2, 1, 1, 4), torch.zeros(C, 1, 1, 4)
    share, majority, trust = (
        estimate([drawn], [prior])[0][0].flatten(1).T.tolist()
        for estimate in (vote_consensus, majority_consensus, TrustAnnotator(1))
    )
    assert share == [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert majority == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], "of equal ones the lowest"
    assert trust == [[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    with pytest.raises(ValueError, match="expected an annotator from 0 to 1 to trust, got 2"):
        TrustAnnotator(2)([drawn], [prior])


def test_exception() -> None:
    with pytest.raises(ValueError, match="0 <= kernels <= push <= tune <= 1"):
        TendencySchedule(push=0.1)
    training = Training()
    with pytest.raises(ValueError, match="every must be at least 1 epoch"):
        ConsensusUpdate(training.network, [], every=0)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        PrototypeUpdate(training.network, [], training.prepare, momentum=(0.9, 1.0))
