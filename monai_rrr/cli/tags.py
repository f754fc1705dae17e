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


"""``monai-rrr tags``: slice tags from masks, or an empty table to fill in by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import counted, guarded, out, progress
from .verify import CONVENTION_HELP, DATA_HELP

__all__ = ["tags"]


@guarded
def tags(
    data: Annotated[Path, typer.Argument(metavar="DATA", help=DATA_HELP)],
    table: Annotated[Path, typer.Argument(metavar="OUT", help="Table to write, .csv or .json.")],
    convention: Annotated[str | None, typer.Option(help=CONVENTION_HELP + " Needed unless --blank.")] = None,
    section: Annotated[str, typer.Option(help="Section of a JSON datalist.")] = "training",
    blank: Annotated[bool, typer.Option("--blank", help="Only the case names, to fill in by hand.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Write down on which slices each tumor region begins and ends: the only labels that training needs.

    Regions are nested: WT (whole tumor) contains TC (tumor core) contains ET (enhancing tumor). Slices are axial,
    counted from 0 at the bottom (inferior end) of the image; first and last both count. Both cells blank: absent.
    For research data the tags can be derived from masks; with --blank you get a table for a radiologist.

    Example: monai-rrr tags BraTS2021 tags.csv --convention brats2018
    """
    from monai_rrr.data import derive_tags, load_datalist, tag_budget, write_tags

    if table.suffix.lower() not in (".csv", ".json"):
        raise typer.BadParameter(f"expected OUT to end in .csv or .json, got {table.name}")
    if table.exists() and not force:
        raise typer.BadParameter(f"{table} exists and may be somebody's work (--force replaces it)")
    if blank == (convention is not None):
        raise typer.BadParameter("expected either --convention NAME (tags from masks) or --blank (to fill in by hand)")
    cases = load_datalist(data, section=section, with_labels=not blank)
    if blank:
        found = {str(case["case_id"]): dict.fromkeys(("WT", "TC", "ET")) for case in cases}
    else:
        with progress("masks read") as step:
            found = derive_tags(counted(cases, step), str(convention))
    write_tags(table, found)
    budget = tag_budget(found)
    numbers = f"{budget['integers']:g} integers, {budget['integers_per_case']:.1f} per case"
    out().print(f"{len(found)} cases in {table}: {numbers}", markup=False)
