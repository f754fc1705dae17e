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

"""Estimate the consensus again, now and then."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, cast

import torch
from ignite.engine import Engine, Events

from monai_rrr.attribution.exclusive import evaluating
from monai_rrr.attribution.trace import record
from monai_rrr.handlers.consensus_estimate import ConsensusEstimate, vote_consensus
from monai_rrr.networks.nets.annotator_tendency import AnnotatorTendencyNet
from monai_rrr.utils.progress import training_progress

__all__ = ["ConsensusUpdate"]


class ConsensusUpdate:
    """Every few epochs, estimate the consensus of all cases again and write it into them.

    ``case["consensus"]`` ``CDHW`` is what :class:`~monai_rrr.engines.PrepareAnnotations` takes in place of the votes;
    random crops take it along like the image. Reliabilities go to the network's ``rho``, which stays the same within an
    epoch. The network's probabilities enter without gradient. The consensus itself is part of no checkpoint: a resumed
    training estimates it at once, with the weights that it goes on with, so that it is not the same to the bit as
    one that was not interrupted.

    Args:
        network: unwrapped.
        cases: dictionaries in memory, those of the trainer's data set: ``image`` ``MDHW``, ``annotations`` ``RDHW``,
            ``annotated`` ``R``.
        estimate: how, see :class:`~monai_rrr.handlers.ConsensusEstimate`; default: the share of the votes.
        every: epochs.
        start: share of the training before which the votes are used.

    Raises:
        ValueError: When ``every`` is not positive, or an estimate does not fit its case.
    """

    def __init__(
        self,
        network: AnnotatorTendencyNet,
        cases: Sequence[MutableMapping[str, Any]],
        estimate: ConsensusEstimate = vote_consensus,
        every: int = 5,
        start: float = 0.2,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 epoch, got {every}")
        self.network, self.cases, self.estimate = network, cases, estimate
        self.every, self.start = every, start
        self._estimated = False

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Estimate, if it is time."""
        due = not self._estimated or (engine.state.epoch - 1) % self.every == 0
        if due and training_progress(engine.state) >= self.start:
            self.update(cast(Any, engine.state).device)
            self._estimated = True

    @torch.no_grad()
    def update(self, device: torch.device | str | None = None) -> None:
        """Estimate the consensus of all cases."""
        annotations, prior = [], []
        with evaluating(self.network):
            for case in self.cases:
                image = torch.as_tensor(case["image"])
                logits = record(self.network, image[None].to(device), []).logits
                prior.append(logits[0].softmax(0).to(image.device))
                drawn = torch.as_tensor(case["annotations"])
                annotated = torch.as_tensor(case.get("annotated", torch.ones(len(drawn)))).bool()
                annotations.append(torch.where(annotated[:, None, None, None].to(drawn.device), drawn, -1))
        found, reliability = self.estimate(annotations, prior)
        for index, (case, consensus, expected) in enumerate(zip(self.cases, found, prior, strict=True)):
            if consensus.shape != expected.shape:
                name = case.get("case_id", index)
                raise ValueError(
                    f"consensus of case {name} must be {tuple(expected.shape)}, got {tuple(consensus.shape)}"
                )
            case["consensus"] = consensus.to(expected)
        if reliability is not None:
            self.network.set_reliability(reliability)
