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

import logging
from collections.abc import Mapping
from typing import Any

import torch
from ignite import distributed as idist
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys
from torch import Tensor

from monai_rrr.attribution.trace import record
from monai_rrr.engines.checks import check_parallel, check_used_parameters
from monai_rrr.errors import TrainingError
from monai_rrr.utils.progress import training_progress

__all__ = ["explanation_update"]

MAX_SKIPPED = 3

logger = logging.getLogger(__name__)


def explanation_update(engine: SupervisedTrainer, batchdata: Mapping[str, Any]) -> dict[str, Any]:
    """``iteration_update`` of MONAI's ``SupervisedTrainer`` whose ``loss_function`` is an objective.

    The network is called once, with what the objective needs recorded; the objective turns the trace and the batch
    into a scalar. The forward pass runs under the trainer's autocast; maps and losses are computed in float32. All of
    MONAI's iteration events fire.

    A step whose loss or gradient is not finite is not taken: weights, buffers and optimizer stay as they were, bit for
    bit, the cases are logged, and ``skipped`` in the output says what it was, for handlers that read the output.
    ``engine.state.skipped`` counts such steps. Three in a row end the training. With several processes, all skip what
    one must skip. Under a ``GradScaler`` a gradient that overflows is part of its search for a scale, which skips the
    step itself; it counts once the scale is down to 1.

    Args:
        engine: trainer with ``loss_function`` an :class:`~monai_rrr.objectives.base.Objective` and ``prepare_batch``
            one that returns a dictionary, such as :class:`~monai_rrr.engines.views.PrepareViews`.
        batchdata: what the data loader yields.

    Returns:
        ``image``, ``pred`` (logits), ``loss``, ``terms`` (values by name, detached), the tags of the batch, ``samples``
        if the batch has them, and ``skipped`` (``"loss"`` or ``"gradient"``) if the step was not taken.

    Raises:
        ValueError: When the trainer was set to an option that this step does not carry out (compile, gradient
            accumulation).
        TypeError: When the loss function is no objective, or ``prepare_batch`` returns no dictionary.
        TrainingError: ``loss-not-finite`` or ``gradient-not-finite``, naming the cases, at the third step in a row.
        ConfigError: ``ddp-static-graph`` or ``parameters-unused``, see :mod:`monai_rrr.engines.checks`.
    """
    objective = _checked_objective(engine)
    check_parallel(engine.network)
    batch = _prepared(engine, batchdata)
    output = {key: batch[key] for key in ("class_label", "present", "case_id", "samples") if key in batch}
    engine.state.output = output
    device = torch.device(engine.state.device)
    buffers = [(buffer, buffer.clone()) for buffer in engine.network.buffers()]
    engine.network.train()
    engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
    with torch.autocast(device.type, enabled=engine.amp, **(engine.amp_kwargs if engine.amp else {})):
        kwargs = {key: batch[key] for key in ("present", "class_idx", "annotated") if key in batch}
        trace = record(engine.network, batch[CommonKeys.IMAGE], objective.layers, **kwargs)
    output.update({CommonKeys.IMAGE: batch[CommonKeys.IMAGE], CommonKeys.PRED: trace.logits.detach()})
    engine.fire_event(IterationEvents.FORWARD_COMPLETED)
    with torch.autocast(device.type, enabled=False):
        loss, terms = objective(trace, batch, training_progress(engine.state))
    output.update({CommonKeys.LOSS: loss, "terms": terms})
    engine.fire_event(IterationEvents.LOSS_COMPLETED)
    failed = None if _finite_everywhere(loss) else ("loss", loss)
    if failed is None:
        failed = _step(engine, loss)
    output[CommonKeys.LOSS] = loss.detach()
    if failed is None:
        engine.state.skipped_in_row = 0
    else:
        output["skipped"] = failed[0]
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        engine.optimizer.zero_grad(set_to_none=True)
        _report(engine, _failure(engine, batch, failed, terms))
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


def _finite_everywhere(loss: Tensor) -> bool:
    finite = bool(torch.isfinite(loss))
    # A process that skips the backward pass alone would leave the others waiting for its gradients.
    return bool(idist.all_reduce(int(finite), "MIN")) if idist.get_world_size() > 1 else finite


def _step(engine: SupervisedTrainer, loss: Tensor) -> tuple[str, Tensor] | None:
    """Take the step, or return the norm of the gradients for which it must not be taken."""
    scaler = engine.scaler if engine.amp else None
    (loss if scaler is None else scaler.scale(loss)).backward()
    engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
    check_used_parameters(engine)
    if scaler is not None and scaler.is_enabled():
        scale = scaler.get_scale()
        scaler.step(engine.optimizer)
        scaler.update()
        overflow = scaler.get_scale() < scale
        return ("gradient", torch.tensor(torch.inf)) if overflow and scale <= 1 else None
    gradients = [p.grad for p in engine.network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not torch.isfinite(norm):
        return "gradient", norm
    engine.optimizer.step()
    return None


def _report(engine: SupervisedTrainer, failure: TrainingError) -> None:
    state = engine.state
    state.skipped = getattr(state, "skipped", 0) + 1
    state.skipped_in_row = getattr(state, "skipped_in_row", 0) + 1
    if state.skipped_in_row >= MAX_SKIPPED:
        raise failure
    logger.warning("step skipped, %d in a row: %s", state.skipped_in_row, failure)


def _failure(
    engine: SupervisedTrainer, batch: Mapping[str, Any], failed: tuple[str, Tensor], terms: Mapping[str, Tensor]
) -> TrainingError:
    what, value = failed
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
