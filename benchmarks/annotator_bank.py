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

"""The prototype bank of ``annotator_tendency.py``, as the method has it or with one part taken away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events

from monai_rrr.handlers import PrototypeUpdate
from monai_rrr.networks import AnnotatorTendencyNet
from monai_rrr.objectives.voxel_sample import VoxelSample

__all__ = ["attach_bank"]


class WithoutPush(PrototypeUpdate):
    """Prototypes are frozen as the means that they are; nothing real can be shown for them."""

    def push(self, device: torch.device | str | None = None) -> None:
        """Freeze."""
        for bank in (self.network.shared_bank, self.network.tendency_bank):
            bank.frozen.fill_(True)


class AllVoxels(VoxelSample):
    """Everyone deviates everywhere."""

    @property
    def deviates(self) -> torch.Tensor:
        """Who drew the voxel."""
        return self.observed

    def agreed(self, num_classes: int) -> torch.Tensor:
        """What nobody deviates from indeed: the shared bank keeps its own rule."""
        return VoxelSample(**vars(self)).agreed(num_classes)


class FromAllVoxels(WithoutPush):
    """Tendency prototypes from all that an annotator drew, shared ones as ever."""

    def __call__(self, engine: Engine) -> None:
        """Look at all voxels."""
        output: Any = engine.state.output
        samples = output.get("samples", {})
        if "voxels" in samples:
            trace, sample = samples["voxels"]
            samples["voxels"] = (trace, AllVoxels(**vars(sample)))
        super().__call__(engine)


BANKS = {"no_push": WithoutPush, "all_voxels": FromAllVoxels}


def kernels_are_prototypes(network: AnnotatorTendencyNet) -> None:
    """Reading R4 of the card: the prototype itself is the kernel, wherever there is one."""
    prototypes = network.tendency_bank.prototype.unflatten(0, (-1, network.num_classes))
    for kernels, prototype in zip(network.tendencies, prototypes, strict=True):
        weight: Any = kernels.weight
        there = prototype.square().sum(-1, keepdim=True) > 0
        weight.data.copy_(torch.where(there, prototype, weight.data))


def attach_bank(
    engine: Engine, network: AnnotatorTendencyNet, cases: Any, prepare: Any, schedule: Any, config: Mapping[str, Any]
) -> None:
    """Attach the handler of the bank.

    Args:
        engine: trainer.
        network: whose bank it is.
        cases: batches, for the push.
        prepare: of the trainer.
        schedule: of the stages.
        config: ``bank`` (``no_push`` or ``all_voxels``), ``momentum``, ``start_kernels`` and ``kernel_is_prototype``.
    """
    options = {"seed": config["seed"], "start_kernels": config.get("start_kernels", True)}
    if "momentum" in config:
        options["momentum"] = tuple(config["momentum"])
    BANKS.get(config.get("bank", ""), PrototypeUpdate)(network, cases, prepare, schedule, **options).attach(engine)
    if config.get("kernel_is_prototype"):
        for kernels in network.tendencies:
            kernels.weight.requires_grad_(False)  # type: ignore[union-attr]
        for event in (Events.ITERATION_STARTED, Events.ITERATION_COMPLETED):
            engine.add_event_handler(event, lambda: kernels_are_prototypes(network))
