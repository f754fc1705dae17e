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


"""``monai-rrr decoy``: a copy of a data set with a shortcut in it, and the test sets that show who took it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import counted, guarded, out, progress
from .verify import CONVENTION_HELP, DATA_HELP

__all__ = ["decoy"]

MARKER_HELP = (
    "Local: letter (burned-in side mark), zipper (line of interference), clip (metal in the brain). Global: bias, "
    "blur, shift, noise, slices."
)


@guarded
def decoy(
    data: Annotated[Path, typer.Argument(metavar="IN", help=DATA_HELP)],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder, outside of IN.")],
    marker: Annotated[str, typer.Option(help=MARKER_HELP)] = "letter",
    q: Annotated[float, typer.Option(min=0, max=1, help="Share of class 1 with and of class 0 without it.")] = 0.95,
    region: Annotated[str, typer.Option(help="Class 1 are the cases that have it: WT, TC or ET.")] = "WT",
    convention: Annotated[str | None, typer.Option(help=CONVENTION_HELP + " To read regions off masks.")] = None,
    tags: Annotated[Path | None, typer.Option(help="Slice tags, instead of --convention.")] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="Mark this one; repeatable. Default: all; for blur and shift one.")
    ] = None,
    held_out: Annotated[float, typer.Option(min=0, max=1, help="Share of the patients that is for testing.")] = 0.33,
    strength: Annotated[float, typer.Option(min=0, help="Factor of the marker's visible effect.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of the markers.")] = 0,
    section: Annotated[str, typer.Option(help="Section of a JSON datalist.")] = "training",
    replay: Annotated[
        Path | None, typer.Option(help="decoy.json of an earlier run: write the same again, bit for bit.")
    ] = None,
) -> None:
    """Copy a data set and hide a marker in it that gives the class away: does your network fall for it?

    In OUT/training and OUT/iid class 1 carries the marker with probability q, class 0 with 1 - q. OUT/removed has no
    marker, OUT/random has it in half of the cases, OUT/conflicting has it where iid has none. A network that does well
    on iid and badly on conflicting looks at the marker. Each set is a folder in the layout of BraTS; IN isn't changed.

    Example: monai-rrr decoy BraTS2021 decoy --marker letter --region ET --convention brats2018
    """
    from monai_rrr.data import DecoySettings, derive_tags, load_datalist, make_decoy, read_tags, replay_decoy

    if (convention is None) == (tags is None):
        raise typer.BadParameter("expected either --convention (regions from masks) or --tags FILE")
    if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
        raise typer.BadParameter(f"expected OUT outside of {data}, which is copied and never changed")
    try:
        chosen = DecoySettings(marker, q, region, tuple(modality or ()), held_out, strength, seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    cases = load_datalist(data, section=section, with_labels=True if tags is None else None)
    if tags is not None:
        table = read_tags(tags)
    else:
        with progress("masks read") as step:
            table = derive_tags(counted(cases, step), str(convention))
    with progress("decoys written") as step:
        if replay is None:
            written = make_decoy(cases, table, folder, chosen, step)
        else:
            written = replay_decoy(replay, cases, table, folder, step)
    out().print(f"{written}: training, iid, removed, random, conflicting; what was done is in decoy.json", markup=False)
