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


"""``monai-rrr verify``: check every file of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import EXIT_INPUT, guarded, out, progress

if TYPE_CHECKING:
    from monai_rrr.data.verify import VerifyReport

__all__ = ["verify"]

DATA_HELP = "Folder of cases (BraTS 2018 to 2023+ names, or MSD Task01), or a MONAI datalist in JSON."
CONVENTION_HELP = (
    "Numbers in the label files: brats2018 (2018 to 2022: 1 NCR, 2 ED, 4 ET), brats2023 (1 NCR, 2 ED, 3 ET) or msd "
    "(1 ED, 2 NCR, 3 ET). It is never guessed."
)


@guarded
def verify(
    data: Annotated[Path, typer.Argument(metavar="DATA", help=DATA_HELP)],
    convention: Annotated[str | None, typer.Option(help=CONVENTION_HELP)] = None,
    tags: Annotated[Path | None, typer.Option(help="Slice tags (.csv or .json) to check against the images.")] = None,
    section: Annotated[str, typer.Option(help="Section of a JSON datalist.")] = "training",
    require: Annotated[list[str] | None, typer.Option(help="Modality that every case must have; repeatable.")] = None,
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Read the label files too.")] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one per core, at most 4.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Read every file once and name everything that is wrong, before it costs you a training.

    Finds damaged or cut-off files, sizes and positions that do not match, NaN and infinite voxels, empty images, wrong
    label values, missing files, the same patient twice, and tags outside the image. Nothing is changed. The exit code
    is 2 when a fault was found.

    Example: monai-rrr verify BraTS2021 --convention brats2018
    """
    from monai_rrr.data import load_datalist, read_tags
    from monai_rrr.data.verify import verify_cases

    cases = load_datalist(data, section=section, with_labels=None if labels else False)
    root = data if data.is_dir() else data.parent
    table = None if tags is None else read_tags(tags)
    with progress("cases checked") as step:
        report = verify_cases(
            cases, convention, table, require=tuple(require or ()), root=root, workers=workers, progress=step
        )
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1))
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(EXIT_INPUT)


def _show(report: VerifyReport) -> None:
    console = out()
    for title, style, entries in (("fault", "red", report.faults), ("note", "yellow", report.notes)):
        for entry in entries:
            console.print(f"{title}: {entry}", style=style, markup=False)
    verdict = "no fault" if report.ok else f"{len(report.faults)} fault{'s' if len(report.faults) > 1 else ''}"
    files = f"{report.cases} cases, {report.files} files read in {report.seconds:.1f} s"
    console.print(f"{verdict}: {files}", style="green" if report.ok else "red", markup=False)
