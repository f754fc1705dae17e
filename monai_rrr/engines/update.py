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
from torch import Tensor

from monai_rrr.attribution.trace import record
from monai_rrr.errors import TrainingError

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
            accumulation).
        TypeError: When the loss function is no objective, or ``prepare_batch`` returns no dictionary.
        TrainingError: ``loss-not-finite`` or ``gradient-not-finite``, naming the cases; the weights and the optimizer
            are then as before the step. Under a ``GradScaler`` that is in use, which skips steps with such gradients
            itself, only the loss is checked.
    """
    objective = _checked_objective(engine)
    batch = _prepared(engine, batchdata)
    output = {key: batch[key] for key in ("class_label", "present", "case_id") if key in batch}
    engine.state.output = output
    device = torch.device(engine.state.device)
    engine.network.train()
    engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
    with torch.autocast(device.type, enabled=engine.amp, **(engine.amp_kwargs if engine.amp else {})):
        kwargs = {key: batch[key] for key in ("present", "class_idx") if key in batch}
        trace = record(engine.network, batch[CommonKeys.IMAGE], objective.layers, **kwargs)
    output.update({CommonKeys.IMAGE: batch[CommonKeys.IMAGE], CommonKeys.PRED: trace.logits.detach()})
    engine.fire_event(IterationEvents.FORWARD_COMPLETED)
    epochs, length = engine.state.max_epochs or 1, engine.state.epoch_length or 1
    progress = min(1.0, (engine.state.iteration - 1) / max(1, epochs * length - 1))
    with torch.autocast(device.type, enabled=False):
        loss, terms = objective(trace, batch, progress)
    output.update({CommonKeys.LOSS: loss, "terms": terms})
    engine.fire_event(IterationEvents.LOSS_COMPLETED)
    if not torch.isfinite(loss):
        raise _failure(engine, batch, "loss", loss, terms)
    _step(engine, batch, loss, terms)
    output[CommonKeys.LOSS] = loss.detach()
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    return output


def _checked_objective(engine: SupervisedTrainer) -> Any:
    if getattr(engine, "compile", False):
        raise ValueError("compile=True is not supported: losses on heatmaps may need second derivatives")
    if getattr(engine, "accumulation_steps", 1) != 1:
        raise ValueError(f"accumulation_steps must be 1, got {engine.accumulation_steps}")
    objective: Any = engine.loss_function
    if not hasattr(objective, "layers"):
        raise TypeError(f"loss_function must be an Objective, got {type(objective).__name__}")
    return objective


def _prepared(engine: SupervisedTrainer, batchdata: Mapping[str, Any]) -> Mapping[str, Any]:
    keyed = {**batchdata, "iteration": engine.state.iteration}
    batch = engine.prepare_batch(keyed, engine.state.device, engine.non_blocking, **engine.to_kwargs)
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"prepare_batch must return a dictionary, got {type(batch).__name__}: use monai_rrr.engines.PrepareViews"
        )
    return batch


def _step(engine: SupervisedTrainer, batch: Mapping[str, Any], loss: Tensor, terms: Mapping[str, Tensor]) -> None:
    scaler = engine.scaler if engine.amp else None
    (loss if scaler is None else scaler.scale(loss)).backward()
    engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
    if scaler is not None and scaler.is_enabled():
        scaler.step(engine.optimizer)
        scaler.update()
        return
    gradients = [p.grad for p in engine.network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not torch.isfinite(norm):
        engine.optimizer.zero_grad(set_to_none=True)
        raise _failure(engine, batch, "gradient", norm, terms)
    engine.optimizer.step()


def _failure(
    engine: SupervisedTrainer, batch: Mapping[str, Any], what: str, value: Tensor, terms: Mapping[str, Tensor]
) -> TrainingError:
    cases = batch.get("case_id", ())
    names = cases if isinstance(cases, str) else ", ".join(map(str, cases))
    parts = ", ".join(f"{name} {float(term):.4g}" for name, term in terms.items())
    return TrainingError(
        f"{what}-not-finite",
        f"expected a finite {what}, got {float(value.detach())} at iteration {engine.state.iteration} (terms: {parts})",
        case_id=names or None,
        field=what,
        hint="weights and optimizer are as before this step; look at these cases, and at learning rate and precision",
    )
