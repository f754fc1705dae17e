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

"""``monai-rrr annotators``: masks of simulated annotators with known habits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import guarded, out, progress
from .verify import CONVENTION_HELP, DATA_HELP

__all__ = ["annotators"]

LEVEL_HELP = (
    "L1 constant habits; L2 habits that depend on the image; L3 one to three annotators per case; L4 a copy and one "
    "who leans on another; L5 an annotator who is new."
)


@guarded
def annotators(
    data: Annotated[Path, typer.Argument(metavar="IN", help=DATA_HELP)],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder, outside of IN.")],
    convention: Annotated[str | None, typer.Option(help=CONVENTION_HELP)] = None,
    level: Annotated[str, typer.Option(help=LEVEL_HELP)] = "L1",
    expert: Annotated[bool, typer.Option(help="Whether one annotator draws the truth, with a shaking hand.")] = True,
    held_out: Annotated[float, typer.Option(min=0, max=1, help="Share of the patients that is for testing.")] = 0.33,
    small: Annotated[float, typer.Option(min=0, help="mm3 below which a lesion is easily missed.")] = 150.0,
    unseen: Annotated[str, typer.Option(help="Kind of the annotator who is new in L5.")] = "under",
    adaptation: Annotated[int, typer.Option(min=1, help="Cases that the new annotator draws in L5.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the pseudonyms and everything drawn.")] = 0,
    section: Annotated[str, typer.Option(help="Section of a JSON datalist.")] = "training",
    replay: Annotated[
        Path | None, typer.Option(help="annotators.json of an earlier run: write the same again, bit for bit.")
    ] = None,
) -> None:
    """Let simulated annotators draw the tumors of a data set again, each with a known habit.

    An expert, one who draws too large, one who draws too small, one who rounds off, one who confuses tissues, and one
    who misses small lesions, as a1, a2 and so on in random order. OUT/datalist.json is for training, the truth is in
    OUT/annotators.json. The true labels come from IN, which isn't changed.

    Example: monai-rrr annotators BraTS2021 team --convention brats2018 --level L3
    """
    from monai_rrr.data import TeamSettings, load_datalist, make_annotators, replay_annotators

    if (convention is None) == (replay is None):
        raise typer.BadParameter("expected either --convention NAME, or --replay FILE, which names the convention")
    if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
        raise typer.BadParameter(f"expected OUT outside of {data}, which is never changed")
    try:
        settings = TeamSettings(level, expert, held_out, seed, small, unseen=unseen, adaptation=adaptation)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    cases = load_datalist(data, section=section, with_labels=True if replay is None else None)
    with progress("cases drawn") as step:
        if replay is None:
            written = make_annotators(cases, str(convention), folder, settings, step)
        else:
            written = replay_annotators(replay, cases, folder, step)
    out().print(f"{written}: masks and datalist.json; who has which habits is in annotators.json", markup=False)
