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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

__all__ = ["TermLogger", "slice_scores", "terms_of"]


class TermLogger:
    """Append ``step, term, value`` to a CSV file every few iterations: the mean of each term since the last row.

    ``total`` is the weighted sum. Values are read from the device only when a row is written.

    Args:
        path: CSV file; a new run begins a new file, a resumed one continues it.
        every: iterations per row.
    """

    def __init__(self, path: str | Path, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.path, self.every = Path(path), every
        self._rows: list[dict[str, object]] = []

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._rows.clear()
        if engine.state.iteration == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("step,term,value\n")

    def __call__(self, engine: Engine) -> None:
        """Collect, and write now and then."""
        output: Any = engine.state.output
        self._rows.append({"total": output["loss"], **output["terms"]})
        if engine.state.iteration % self.every == 0:
            self._write(engine)

    def _write(self, engine: Engine) -> None:
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            for name in names:
                values = [float(row[name]) for row in self._rows if name in row]  # type: ignore[arg-type]
                writer.writerow([engine.state.iteration, name, f"{sum(values) / len(values):.6g}"])
        self._rows.clear()


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
