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

"""Keep the prototypes up to date, and turn them into real patches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor

from monai_rrr.attribution.exclusive import evaluating
from monai_rrr.attribution.trace import record
from monai_rrr.handlers.tendency_stages import TendencySchedule
from monai_rrr.networks.nets.right_reasons_net import TellsWhoNet
from monai_rrr.objectives.voxel_sample import VoxelSample, at_voxels
from monai_rrr.utils.progress import training_progress
from monai_rrr.utils.seeds import step_generator

__all__ = ["PrototypeUpdate", "deviation_candidates"]


class PrototypeUpdate:
    """Prototypes follow the embeddings of the drawn voxels, become real patches, and stay.

    Stage 0 only remembers embeddings; where stage 1 begins, and in each epoch of it, groups without prototypes are
    started by k-means, and where it begins, the kernels of annotators who do not depart from the consensus yet
    (``gamma`` 0: no output changes) are put on these prototypes. From random kernels, ``gamma`` is as likely to become
    negative, and a place that looks like where an annotator draws a class then gets less of it. In stage 1 the others
    move after every step; where stage 2 begins, all are pushed to training embeddings and frozen. Tendency prototypes
    come from voxels where an annotator deviates from the consensus, shared ones from voxels where nobody does: taken
    from all voxels, those of all annotators would coincide. Nothing moves after a step that was skipped. With several
    processes, embeddings of all of them are used by all. The state is the network's.

    Args:
        network: unwrapped.
        cases: whole volumes of the training, as batches in a fixed order; read once, for the push. The index of a
            prototype's source counts their cases.
        prepare: as the trainer's ``prepare_batch``.
        schedule: of the stages.
        momentum: at the begin and at the end of stage 1.
        per_group: candidates of a case for the prototypes of one annotator and class.
        seed: of k-means and of the choice of candidates.
        random: put random directions in their place where stage 1 begins, which never move: a control.
        start_kernels: put kernels on prototypes where stage 1 begins.

    Attributes:
        case_ids: of the cases, once they were read, in the order that the sources count.
    """

    def __init__(
        self,
        network: TellsWhoNet,
        cases: Iterable[Mapping[str, Any]],
        prepare: Callable[..., Mapping[str, Any]],
        schedule: TendencySchedule | None = None,
        momentum: tuple[float, float] = (0.99, 0.999),
        per_group: int = 64,
        seed: int = 0,
        random: bool = False,
        start_kernels: bool = True,
    ) -> None:
        if not 0 <= min(momentum) <= max(momentum) < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.network, self.cases, self.prepare = network, cases, prepare
        self.schedule, self.momentum = schedule or TendencySchedule(), momentum
        self.per_group, self.seed = per_group, seed
        self.random, self.start_kernels = random, start_kernels
        self.case_ids: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _begin(self, engine: Engine) -> None:
        state = engine.state
        stage = self.schedule.stage(training_progress(state))
        first = state.iteration == 1
        before = 0 if first else self.schedule.stage(training_progress(state, state.iteration - 1))
        if self.random:
            if stage >= 1 and before == 0:
                for offset, bank in enumerate((self.network.shared_bank, self.network.tendency_bank)):
                    bank.randomize(self.seed + offset)
            return
        epoch_starts = (state.iteration - 1) % (state.epoch_length or 1) == 0
        if stage == 1 and (before == 0 or epoch_starts):
            for bank in (self.network.shared_bank, self.network.tendency_bank):
                bank.initialize(self.seed)
            if before == 0 and self.start_kernels:
                self._put_kernels_on_prototypes()
        elif stage >= 2 and before < 2:
            self.push(cast(Any, state).device)

    @torch.no_grad()
    def _put_kernels_on_prototypes(self) -> None:
        prototypes = self.network.tendency_bank.prototype.unflatten(0, (-1, self.network.num_classes))
        for kernels, prototype in zip(self.network.tendencies, prototypes, strict=True):
            weight, gamma = cast("tuple[Tensor, Tensor]", (kernels.weight, kernels.gamma))
            there = (prototype.square().sum(-1, keepdim=True) > 0) & (gamma == 0)
            weight.copy_(torch.where(there, prototype.to(weight.dtype), weight))

    def __call__(self, engine: Engine) -> None:
        """Remember, and in stage 1 move."""
        output: Any = engine.state.output
        progress = training_progress(engine.state)
        stage = self.schedule.stage(progress)
        # taken out, as it holds the trace: features as large as the batch
        kept = output.get("samples", {}).pop("voxels", None)
        if "skipped" in output or stage > 1:
            return
        if kept is None:
            raise ValueError(
                "no term looked at drawn voxels: give one that does, such as TendencyParsimony, a weight above 0 "
                "throughout, and set prepare_batch to monai_rrr.engines.PrepareAnnotations"
            )
        momentum = None
        if stage == 1:
            first, last = self.momentum
            span = max(self.schedule.push - self.schedule.kernels, 1e-12)
            momentum = first + (last - first) * (progress - self.schedule.kernels) / span
        sample: VoxelSample = kept[1]
        classes = self.network.num_classes
        own = sample.one_hot(classes).flatten(1)
        embedding, own, agreed = _from_all((sample.embedding.detach(), own, sample.agreed(classes)))
        self.network.tendency_bank.observe(embedding, own.T, momentum)
        self.network.shared_bank.observe(embedding, agreed.T, momentum)

    @torch.no_grad()
    def push(self, device: torch.device | str | None = None) -> None:
        """Read all cases, replace the prototypes by real embeddings and freeze them.

        Groups that have none yet, such as those of an annotator who was added later, are started by k-means of the
        candidates; those that are frozen already stay.
        """
        found: list[tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = []
        self.case_ids = []
        for batch in self._embedded(device):
            for b in range(len(batch["embedding"])):
                index = len(self.case_ids)
                ids = batch.get("case_id", ())
                self.case_ids.append(str(ids if isinstance(ids, str) else ids[b]) if len(ids) else str(index))
                generator = step_generator(self.seed, index)
                part = {key: batch[key][b] for key in ("embedding", "annotations", "consensus_label")}
                found.append(deviation_candidates(part, index, self.network.num_classes, self.per_group, generator))
        banks = (self.network.tendency_bank, self.network.shared_bank)
        for bank, candidates in zip(banks, zip(*found, strict=True), strict=True):
            groups = torch.arange(len(bank.prototype), device=bank.prototype.device)[:, None]
            for points, group, _ in candidates:
                bank.observe(points, group == groups)
            bank.initialize(self.seed)
            bank.push(candidates)

    def _embedded(self, device: torch.device | str | None) -> Iterator[dict[str, Any]]:
        with evaluating(self.network):
            for batchdata in self.cases:
                batch = self.prepare(batchdata, device, False)
                trace = record(self.network, batch["image"], ["embedding"])
                yield {**batch, "embedding": trace.features["embedding"]}


def deviation_candidates(
    case: Mapping[str, Tensor], index: int, num_classes: int, per_group: int, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Embeddings of one case that could be prototypes: of each annotator and class, and shared ones.

    Args:
        case: ``embedding`` ``Edhw``, ``annotations`` ``RDHW``, ``consensus_label`` ``DHW``.
        index: of the case.
        num_classes: ``C``.
        per_group: voxels of each annotator and class, and of each class, at most.
        generator: on the CPU; which voxels.

    Returns:
        twice embeddings ``n E``, groups ``n`` and sources ``n S``.
    """
    drawn, consensus, embedding = case["annotations"], case["consensus_label"], case["embedding"]
    classes = torch.arange(num_classes, device=drawn.device)
    deviates = (drawn >= 0) & (drawn != consensus)
    own = (deviates & (drawn == classes[:, None, None, None, None])).transpose(0, 1).flatten(0, 1)
    alike = ~deviates.any(0) & (drawn >= 0).any(0)
    shared = alike & (consensus == classes[:, None, None, None])
    random = torch.rand(consensus.shape, generator=generator).to(drawn.device)
    factors = [(few, many) for few, many in zip(embedding.shape[1:], consensus.shape, strict=True)]
    results = []
    for member in (own, shared):
        value, place = torch.where(member, random, -1.0).flatten(1).topk(min(per_group, random.numel()), dim=1)
        group, column = torch.nonzero(value >= 0, as_tuple=True)
        voxel = torch.stack(torch.unravel_index(place[group, column], consensus.shape), 1)
        coarse = [(voxel[:, axis] * few // many).clamp(max=few - 1) for axis, (few, many) in enumerate(factors)]
        points = at_voxels(embedding[None], torch.stack([torch.zeros_like(group), *coarse], 1))
        annotator = group // num_classes if member is own else torch.full_like(group, -1)
        said = at_voxels(consensus[None], torch.cat([torch.zeros_like(group)[:, None], voxel], 1))
        about = torch.stack([torch.full_like(group, index), annotator, group % num_classes, said], 1)
        results.append((points, group, torch.cat([about, voxel], 1)))
    return results[0], results[1]


def _from_all(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if idist.get_world_size() == 1:
        return values
    return tuple(cast(Tensor, idist.all_gather(value.contiguous().float())).to(value.dtype) for value in values)
