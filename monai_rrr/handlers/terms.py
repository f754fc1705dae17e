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

"""Write the terms of the objective to a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor

from monai_rrr.utils.files import atomic_write
from monai_rrr.utils.tensor_file import write_errors

__all__ = ["TermLogger", "slice_scores", "terms_of"]

_HEADER = "step,term,value\n"


class TermLogger:
    """Append ``step, term, value`` to a CSV file every few iterations: the mean of each term since the last row.

    ``total`` is the weighted sum. Values are read from the device only when a row is written. Steps that were skipped
    do not count. With several processes, the first one writes its own values. When this handler is among the objects
    of the checkpoint, the table of a resumed training is, to the byte, that of one that was not interrupted.

    Args:
        path: CSV file; a new run begins a new file, a resumed one drops what was written after its checkpoint and
            continues.
        every: iterations per row.

    Raises:
        CheckpointError: ``checkpoint-write``, when the file can't be written.
    """

    def __init__(self, path: str | Path, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.path, self.every = Path(path), every
        self._rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def state_dict(self) -> dict[str, Any]:
        """Return the values that are not written yet, as plain numbers."""
        return {"rows": [{name: float(value) for name, value in row.items()} for row in self._rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values that were not written."""
        self._rows = [dict(row) for row in state["rows"]]

    def _start(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        with write_errors(self.path):
            if engine.state.iteration == 0 or not self.path.exists():
                self._rows.clear()
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(_HEADER)
                return
            lines = self.path.read_text("utf-8").splitlines(keepends=True)
            kept = [line for line in lines[1:] if line.endswith("\n") and _step_of(line) <= engine.state.iteration]
            atomic_write(self.path, "".join([_HEADER, *kept]).encode())

    def __call__(self, engine: Engine) -> None:
        """Collect, and write now and then."""
        output: Any = engine.state.output
        if "skipped" not in output:
            self._rows.append({"total": output["loss"], **output["terms"]})
        if engine.state.iteration % self.every == 0:
            self._write(engine)

    def _write(self, engine: Engine) -> None:
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        if idist.get_rank() == 0:
            with write_errors(self.path), self.path.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                for name in names:
                    values = [float(row[name]) for row in self._rows if name in row]
                    writer.writerow([engine.state.iteration, name, f"{sum(values) / len(values):.6g}"])
        self._rows.clear()


def _step_of(line: str) -> float:
    step = line.partition(",")[0]
    return int(step) if step.isdigit() else math.inf


def terms_of(output: dict[str, object]) -> dict[str, object]:
    """``output_transform`` for MONAI's ``TensorBoardStatsHandler`` and ``StatsHandler``: loss and all terms."""
    terms = output["terms"]
    if not isinstance(terms, dict):
        raise TypeError(f"terms must be a dictionary, got {type(terms).__name__}")
    return {"loss": output["loss"], **terms}


def slice_scores(output: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """``output_transform`` for slice-wise metrics: the strongest evidence of each slice and its tag, both ``slices K``.

    Reads ``pred`` (heatmaps ``K H W D``) and ``label`` (slice tags ``K D``) of a decollated evaluator output.
    """
    scores = torch.cat([torch.as_tensor(item["pred"]).amax((1, 2)).T for item in output])
    return scores, torch.cat([torch.as_tensor(item["label"]).T for item in output])
