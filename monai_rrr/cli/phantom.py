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


"""``monai-rrr phantom``: write a synthetic cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import guarded, out, progress

__all__ = ["phantom"]


@guarded
def phantom(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder for the cases.")],
    cases: Annotated[int, typer.Option(min=1, help="Number of cases.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    spacing: Annotated[float, typer.Option(min=1, max=10, help="Voxel size in mm; 1 is the size of BraTS.")] = 3.0,
    controls: Annotated[float, typer.Option(min=0, max=1, help="Share of cases without tumor.")] = 0.1,
    first: Annotated[int, typer.Option(min=0, help="Number of the first case, to extend a cohort.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Make brain tumor MRI out of nothing: T1, T1ce, T2, FLAIR and label files in the layout of BraTS 2021.

    Nothing is downloaded. The labels follow the convention brats2018 (1 necrosis, 2 edema, 4 enhancing tumor).

    Example: monai-rrr phantom phantom_data --cases 24 --seed 1
    """
    from monai_rrr.data.phantom import generate_cohort

    if not force and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise typer.BadParameter(f"expected a new or empty folder, {folder} has content (--force writes into it)")
    with progress("synthetic cases") as report:
        written = generate_cohort(folder, cases, seed, spacing, controls, first, progress=report)
    out().print(f"{len(written)} cases in {folder}", markup=False)
