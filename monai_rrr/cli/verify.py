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

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import EXIT_INPUT, guarded, out, progress

if TYPE_CHECKING:
    from monai_rrr.data.verify import VerifyReport

__all__ = ["verify"]

DATA_HELP = "Folder of cases (BraTS 2018 to 2023+ names, or MSD Task01), or a MONAI datalist in JSON."
MAX_IGNORED = 20
CONVENTION_HELP = (
    "Numbers in the label files: brats2018 (2018 to 2022: 1 NCR, 2 ED, 4 ET), brats2023 (1 NCR, 2 ED, 3 ET) or msd "
    "(1 ED, 2 NCR, 3 ET). It is never guessed."
)


@guarded
def verify(
    data: Annotated[Path, typer.Argument(metavar="DATA", help=DATA_HELP)],
    convention: Annotated[str | None, typer.Option(help=CONVENTION_HELP)] = None,
    tags: Annotated[Path | None, typer.Option(help="Slice tags (.csv or .json) to check against the images.")] = None,
    section: Annotated[list[str] | None, typer.Option(help="Section of a JSON datalist; repeatable.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="Modality that every case must have; repeatable.")] = None,
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Read the label files too.")] = True,
    allow_absent: Annotated[
        list[str] | None, typer.Option(help="Region (WT, TC, ET) that no case needs to be tagged with; repeatable.")
    ] = None,
    tag_tolerance: Annotated[int, typer.Option(min=0, help="Slices by which tags and labels may differ.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one per core, at most 4.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the whole report as JSON; - prints it.")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Skip files that are the same as when they were found intact.")
    ] = True,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read every byte of these files, instead of looking at size and times.")
    ] = False,
) -> None:
    """Read every file once and name everything that is wrong, before it costs you a training.

    Finds damaged or cut-off files, sizes and positions that do not match, NaN and infinite voxels, empty images, wrong
    label values, missing files, the same patient twice, and tags outside the image or against the label. Nothing is
    changed. The exit code is 2 when a fault was found.

    Intact files are remembered in the user's cache folder (MONAI_RRR_CACHE chooses another one), without their names.

    Example: monai-rrr verify BraTS2021 --convention brats2018
    """
    from monai_rrr.data.verify import verify_dataset
    from monai_rrr.utils.files import atomic_write

    with progress("cases checked") as step:
        report = verify_dataset(
            data,
            convention,
            tags,
            sections=tuple(section or ("training",)),
            with_labels=None if labels else False,
            require=tuple(require or ()),
            allow_absent=tuple(allow_absent or ()),
            tag_tolerance=tag_tolerance,
            workers=workers,
            cache=_cache_file(data) if cache else None,
            rehash=rehash,
            progress=step,
        )
    text = json.dumps(report.as_dict(), indent=1)
    if json_file is not None and str(json_file) != "-":
        atomic_write(json_file, text.encode())
    if str(json_file) == "-":
        typer.echo(text)
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(EXIT_INPUT)


def _cache_file(data: Path) -> Path:
    home = os.environ.get("MONAI_RRR_CACHE")
    if home is None:
        base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        home = str(Path(base) / "monai_rrr")
    name = hashlib.sha256(os.fsencode(os.path.abspath(data))).hexdigest()[:32]
    return Path(home) / "verified" / f"{name}.json"


def _show(report: VerifyReport) -> None:
    console = out()
    for item in report.ignored[:MAX_IGNORED]:
        console.print(f"{item}", style="dim", markup=False)
    if len(report.ignored) > MAX_IGNORED:
        console.print(f"[ignored] and {len(report.ignored) - MAX_IGNORED} more", style="dim", markup=False)
    for title, style, entries in (("note", "yellow", report.notes), ("fault", "red", report.faults)):
        for entry in entries:
            console.print(f"{title}: {entry}", style=style, markup=False)
    verdict = "no fault" if report.ok else f"{len(report.faults)} fault{'s' if len(report.faults) > 1 else ''}"
    known = f", {report.unchanged} of them unchanged since they were found intact" if report.unchanged else ""
    files = f"{report.cases} cases, {report.files} files read{known} in {report.seconds:.1f} s"
    console.print(f"{verdict}: {files}", style="green" if report.ok else "red", markup=False)
