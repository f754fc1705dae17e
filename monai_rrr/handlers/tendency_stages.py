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

"""The stages in which consensus, kernels and prototypes are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from monai_rrr.networks.nets.right_reasons_net import TellsWhoNet
from monai_rrr.utils.progress import training_progress

__all__ = ["TendencySchedule", "TendencyStages"]


@dataclass(frozen=True)
class TendencySchedule:
    """When each stage begins, as shares of the training.

    Stage 0: backbone and consensus. 1: kernels, and prototypes that follow the embeddings. 2: prototypes are pushed to
    real patches and frozen. 3: only kernels, ``gamma`` and the scale are trained.

    Args:
        kernels: begin of stage 1.
        push: begin of stage 2.
        tune: begin of stage 3.

    Raises:
        ValueError: When not 0 <= kernels <= push <= tune <= 1.

    Example:
        >>> [TendencySchedule().stage(progress) for progress in (0.0, 0.2, 0.7, 0.75)]
        [0, 1, 2, 3]
    """

    kernels: float = 0.2
    push: float = 0.7
    tune: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.kernels <= self.push <= self.tune <= 1:
            raise ValueError(f"expected 0 <= kernels <= push <= tune <= 1, got {self}")

    def stage(self, progress: float) -> int:
        """The stage at a share of the training in [0, 1]."""
        return sum(progress >= begin for begin in (self.kernels, self.push, self.tune))


class TendencyStages:
    """Take from the optimizer what a stage does not train, and freeze the backbone's statistics in the last one.

    Gradients are computed as always, so that processes stay in step, and dropped right before the optimizer's step:
    frozen parameters do not move at all, by momentum or weight decay neither. The stage follows from the progress of
    training alone; a resumed training goes on in the right one.

    Args:
        network: unwrapped.
        optimizer: of the trainer.
        schedule: when each stage begins.
    """

    def __init__(
        self,
        network: TellsWhoNet,
        optimizer: Optimizer,
        schedule: TendencySchedule | None = None,
    ) -> None:
        self.network, self.optimizer, self.schedule = network, optimizer, schedule or TendencySchedule()
        self._frozen: list[nn.Parameter] = []
        self._hook: RemovableHandle | None = None

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self)
        for event in (Events.COMPLETED, Events.TERMINATE):
            engine.add_event_handler(event, self._stop)

    def __call__(self, engine: Engine) -> None:
        """Set the stage of the iteration that begins."""
        stage = self.schedule.stage(training_progress(engine.state))
        own = {id(parameter) for parameter in self.network.tendency_parameters()}
        if stage == 0:
            self._frozen = self.network.tendency_parameters()
        elif stage == 3:
            self._frozen = [parameter for parameter in self.network.parameters() if id(parameter) not in own]
        else:
            self._frozen = []
        self.network.freeze_backbone = stage == 3

    def _start(self, engine: Engine) -> None:
        self._stop(engine)
        self._hook = self.optimizer.register_step_pre_hook(self._drop)

    def _stop(self, engine: Engine) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _drop(self, *_: Any) -> None:
        for parameter in self._frozen:
            parameter.grad = None
