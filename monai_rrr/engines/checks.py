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

"""What must hold of a network before its first optimizer step, so that training does not go wrong without a word."""

from __future__ import annotations

import logging
from typing import cast

from monai.engines import SupervisedTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_rrr.errors import ConfigError

__all__ = ["check_parallel", "check_used_parameters"]

_LISTED = 8


def check_parallel(network: nn.Module) -> None:
    """Refuse a static graph: with second derivatives its gradients are wrong and differ between processes, silently.

    Raises:
        ConfigError: ``ddp-static-graph``.
    """
    if isinstance(network, DistributedDataParallel) and network.static_graph:
        message = "expected DistributedDataParallel(static_graph=False), got static_graph=True"
        hint = "losses on heatmaps get wrong gradients with it; find_unused_parameters=True serves the same need"
        raise ConfigError("ddp-static-graph", message, field="static_graph", hint=hint)


def check_used_parameters(engine: SupervisedTrainer) -> None:
    """Name the trainable parameters that got no gradient, between a backward pass and its step.

    In one process they stay as they are: a warning in the log, once. In ``DistributedDataParallel`` they leave
    gradients that are not averaged, and the *next* iteration fails without a name.

    Raises:
        ConfigError: ``parameters-unused``, in several processes without ``find_unused_parameters``.
    """
    network = engine.network
    parallel = isinstance(network, DistributedDataParallel)
    strict = parallel and not network.find_unused_parameters
    if not strict and engine.state.iteration != 1:
        return
    inner = cast(nn.Module, network.module) if parallel else network
    idle = [name for name, parameter in inner.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if not idle:
        return
    more = f" and {len(idle) - _LISTED} more" if len(idle) > _LISTED else ""
    message = f"expected a gradient for every trainable parameter, got none for {', '.join(idle[:_LISTED])}{more}"
    if strict:
        hint = "freeze them with requires_grad_(False), or wrap the network with find_unused_parameters=True"
        raise ConfigError("parameters-unused", message, field="network", hint=hint)
    logging.getLogger(__name__).warning(message)
