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

"""What was run: settings, versions, data budget and result, in one JSON file."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from monai_rrr.data.tags import tag_budget
from monai_rrr.objectives.base import Objective
from monai_rrr.utils.files import atomic_write

__all__ = ["RunRecord"]

_PACKAGES = ("monai-rrr", "monai", "torch", "pytorch-ignite", "numpy", "nibabel")


class RunRecord:
    """Write ``run.json`` when training starts, and again with the result when it ends.

    Holds the weights of the objective at the start, middle and end of training, the tag budget (integers per case),
    the number of cases, the network's operating points and reliabilities, versions, hardware, seed and seconds. No
    path and no case id is written. ``status`` is ``running``, ``interrupted`` or ``completed``; ``seconds`` is the sum
    over all parts of an interrupted training when this handler is among the objects of the checkpoint.

    Args:
        path: JSON file.
        objective: for its weights.
        tags: tags of the training cases.
        network: for ``operating_point`` and ``reliability``, where it has them.
        settings: further plain values to keep, such as seed, spacing and learning rate.
    """

    def __init__(
        self,
        path: str | Path,
        objective: Objective,
        tags: Mapping[str, Any],
        network: nn.Module,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.objective, self.tags, self.network = Path(path), objective, tags, network
        self.settings = dict(settings or {})
        self._begin = time.perf_counter()
        self._before = 0.0

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.TERMINATE, self._interrupt)
        engine.add_event_handler(Events.COMPLETED, self._complete)

    def state_dict(self) -> dict[str, float]:
        """Return the seconds that training took so far."""
        return {"seconds": self._before + time.perf_counter() - self._begin}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over the seconds of the parts before."""
        self._before = state["seconds"]

    def _interrupt(self, engine: Engine) -> None:
        self._before, self._begin = self.state_dict()["seconds"], time.perf_counter()
        self._write(engine, {"status": "interrupted", "seconds": round(self._before, 1)})

    def _start(self, engine: Engine) -> None:
        self._begin = time.perf_counter()
        self._write(engine, {"status": "running"})

    def _complete(self, engine: Engine) -> None:
        result: dict[str, Any] = {"status": "completed", "seconds": round(self.state_dict()["seconds"], 1)}
        for name in ("operating_point", "reliability"):
            value = getattr(self.network, name, None)
            if isinstance(value, nn.Module):
                value = value()
            if isinstance(value, torch.Tensor):
                result[name] = [[round(float(v), 4) for v in row] for row in value.detach().cpu()]
        self._write(engine, result)

    def _write(self, engine: Engine, result: Mapping[str, Any]) -> None:
        if idist.get_rank() != 0:
            return
        record = {
            "weights": {str(at): self.objective.weights_at(at) for at in (0.0, 0.5, 1.0)},
            "training_cases": len(self.tags),
            "tag_budget": tag_budget(self.tags),
            "epochs": engine.state.max_epochs,
            "iterations_per_epoch": engine.state.epoch_length,
            "settings": self.settings,
            "versions": {name: version(name) for name in _PACKAGES},
            "python": platform.python_version(),
            "skipped_steps": getattr(engine.state, "skipped", 0),
            "processes": idist.get_world_size(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
            **result,
        }
        atomic_write(self.path, json.dumps(record, indent=2).encode() + b"\n")
