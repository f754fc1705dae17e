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


"""The table of scores in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table

from .console import out

if TYPE_CHECKING:
    from monai_rrr.metrics import Interval

__all__ = ["print_scores"]

WIDTH = 96


def print_scores(runs: Sequence[Path]) -> None:
    """Print the mean Dice of each method and threshold; with its 95 % interval where there is room for it."""
    from monai_rrr.report.run_folder import merge_scores, read_run
    from monai_rrr.report.summary import summarize

    console = out()
    wide = console.width >= WIDTH
    read = [read_run(folder) for folder in runs]
    regions = summarize(merge_scores(read), [run.name for run in read])
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for region, found in regions.items():
        for summary in found:
            lines.setdefault((summary.method, summary.threshold), {})[region] = _cell(summary.scores["dice"], wide)
    title = "Dice on held-out cases, mean" + (" [95 % interval]" if wide else "")
    table = Table("method", "threshold", *regions, title=title, box=SIMPLE)
    for (method, threshold), cells in lines.items():
        table.add_row(method, threshold, *(cells.get(region, "") for region in regions))
    console.print(table)


def _cell(dice: Interval, wide: bool) -> str:
    return f"{dice.mean:.2f} [{dice.low:.2f}, {dice.high:.2f}]" if wide else f"{dice.mean:.2f}"
