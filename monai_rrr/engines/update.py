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

"""One training step with an objective on the network's own heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys

from monai_rrr.attribution.trace import record

__all__ = ["explanation_update"]


def explanation_update(engine: SupervisedTrainer, batchdata: Mapping[str, Any]) -> dict[str, Any]:
    """``iteration_update`` of MONAI's ``SupervisedTrainer`` whose ``loss_function`` is an objective.

    The network is called once, with what the objective needs recorded; the objective turns the trace and the batch
    into a scalar. The forward pass runs under the trainer's autocast; maps and losses are computed in float32. All of
    MONAI's iteration events fire.

    Args:
        engine: trainer with ``loss_function`` an :class:`~monai_rrr.objectives.base.Objective` and ``prepare_batch``
            one that returns a dictionary, such as :class:`~monai_rrr.engines.views.PrepareViews`.
        batchdata: what the data loader yields.

    Returns:
        ``image``, ``pred`` (logits), ``loss``, ``terms`` (values by name, detached) and the tags of the batch.

    Raises:
        ValueError: When the trainer was set to an option that this step does not carry out (compile, gradient
            accumulation), or the loss is not finite; the weights are then as before the step.
    """
    if getattr(engine, "compile", False):
        raise ValueError("compile=True is not supported: losses on heatmaps may need second derivatives")
    if getattr(engine, "accumulation_steps", 1) != 1:
        raise ValueError(f"accumulation_steps must be 1, got {engine.accumulation_steps}")
    keyed = {**batchdata, "iteration": engine.state.iteration}
    batch = engine.prepare_batch(keyed, engine.state.device, engine.non_blocking, **engine.to_kwargs)
    output = {key: batch[key] for key in ("class_label", "present", "case_id") if key in batch}
    engine.state.output = output
    objective = engine.loss_function
    device = torch.device(engine.state.device)
    engine.network.train()
    engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
    with torch.autocast(device.type, enabled=engine.amp, **(engine.amp_kwargs if engine.amp else {})):
        kwargs = {"present": batch["present"]} if "present" in batch else {}
        trace = record(engine.network, batch[CommonKeys.IMAGE], objective.layers, **kwargs)
    output.update({CommonKeys.IMAGE: batch[CommonKeys.IMAGE], CommonKeys.PRED: trace.logits.detach()})
    engine.fire_event(IterationEvents.FORWARD_COMPLETED)
    epochs, length = engine.state.max_epochs or 1, engine.state.epoch_length or 1
    progress = min(1.0, (engine.state.iteration - 1) / max(1, epochs * length - 1))
    with torch.autocast(device.type, enabled=False):
        loss, terms = objective(trace, batch, progress)
    output.update({CommonKeys.LOSS: loss, "terms": terms})
    engine.fire_event(IterationEvents.LOSS_COMPLETED)
    if engine.amp and engine.scaler is not None:
        engine.scaler.scale(loss).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        engine.scaler.step(engine.optimizer)
        engine.scaler.update()
    else:
        loss.backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        engine.optimizer.step()
    output[CommonKeys.LOSS] = loss.detach()
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    return output
