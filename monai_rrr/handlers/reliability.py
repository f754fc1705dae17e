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

"""Keep the reliability of the modalities up to date."""

from __future__ import annotations

from typing import Any, cast

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from monai_rrr.objectives.classification import tag_loss_by_modality

__all__ = ["ReliabilityHandler"]


class ReliabilityHandler:
    """After each step, move the network's running tag losses towards those of the batch.

    Reads ``pred`` (``B M K``), ``class_label`` and ``present`` of the trainer's output; sums over all processes, so
    that every process holds the same weights. Nothing moves after a step that was skipped. Its state is the network's.

    Args:
        network: has a :class:`~monai_rrr.networks.blocks.reliability.Reliability` as ``reliability``; unwrapped.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Update the buffers."""
        output: Any = engine.state.output
        if "skipped" in output:
            return
        loss, count = tag_loss_by_modality(output["pred"], output["class_label"], output["present"])
        total = torch.stack([loss * count, count])
        if idist.get_world_size() > 1:
            total = cast(torch.Tensor, idist.all_reduce(total))
        cast(Any, self.network.reliability).update(total[0] / total[1].clamp(min=1), total[1])
