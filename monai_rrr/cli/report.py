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


"""``monai-rrr report``: one HTML file about trainings, baselines and held-out cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import guarded, out, progress
from .verify import CONVENTION_HELP, DATA_HELP

__all__ = ["make_report", "report"]


@guarded
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Output folders of trained and evaluated bundles. The first is the method to report, the others are "
            "compared with it.",
        ),
    ],
    data: Annotated[Path, typer.Option(help=DATA_HELP + " With masks.")],
    convention: Annotated[str, typer.Option(help=CONVENTION_HELP)],
    section: Annotated[str, typer.Option(help="Section of a JSON datalist.")] = "training",
    folder: Annotated[Path, typer.Option("--out", help="Folder for index.html.")] = Path("report"),
    max_cases: Annotated[int, typer.Option(min=1, help="Show pictures of so many cases, the worst ones.")] = 24,
    annotators: Annotated[
        bool, typer.Option("--annotators", help="Of a run that has heatmaps and annotators: report the annotators.")
    ] = False,
) -> None:
    """Write a report: scores with intervals beside baselines, training curves, pictures of held-out cases, a viewer.

    The result is one file that can be moved, printed and opened without a network. It holds no path. A run with several
    annotators gets their report cards, and who and why of held-out cases; it is reported alone.

    Example: monai-rrr report demo/full demo/plain_cam --data BraTS2021 --convention brats2018

    Example: monai-rrr report annotators/eval --data team/datalist.json --section test --convention brats2018

    Example: monai-rrr report right_reasons/eval --annotators --data team/datalist.json --section test --convention
    brats2018
    """
    from monai_rrr.data import load_datalist

    cases = load_datalist(data, section=section, with_annotations=True)
    path = make_report(runs, cases, convention, folder, max_cases, annotators)
    out().print(f"{path}", markup=False)


def make_report(
    runs: Sequence[Path],
    cases: Sequence[Mapping[str, Any]],
    convention: str,
    folder: Path,
    max_cases: int,
    annotators: bool = False,
) -> Path:
    """Write the report with a bar; see :func:`~monai_rrr.report.write.write_report`.

    A run with several annotators, or ``annotators``: see :func:`~monai_rrr.report.write_annotator_report`.
    """
    from monai_rrr.report import is_annotator_run, write_annotator_report, write_report

    if annotators or any(is_annotator_run(run) for run in runs):
        if len(runs) > 1:
            raise typer.BadParameter("expected one run where there are several annotators, which is reported alone")
        with progress("cases") as step:
            return write_annotator_report(runs[0], cases, convention, folder, max_cases=max_cases, progress=step)
    with progress("pictures of cases") as step:
        return write_report(runs, cases, convention, folder, max_cases=max_cases, progress=step)
