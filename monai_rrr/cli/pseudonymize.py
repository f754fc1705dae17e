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


"""``monai-rrr pseudonymize``: the same data set under random names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import guarded, out
from .verify import DATA_HELP

__all__ = ["pseudonymize"]


@guarded
def pseudonymize(
    data: Annotated[Path, typer.Argument(metavar="DATA", help=DATA_HELP)],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the files under their new names.")],
    key: Annotated[Path, typer.Option(help="Table of the names (.csv), made or extended; keep it with the originals.")],
    tags: Annotated[Path | None, typer.Option(help="Slice tags to write under the new names.")] = None,
    section: Annotated[str, typer.Option(help="Section of a JSON datalist.")] = "training",
) -> None:
    """Give every case a random name, so that logs, reports and results name no patient.

    The files are linked, not changed: free text in their headers stays in them, so OUT is not fit for giving away.

    Example: monai-rrr pseudonymize BraTS2021 work --key safe/key.csv
    """
    from monai_rrr.data import load_datalist, read_tags
    from monai_rrr.data import pseudonymize as rename

    cases = load_datalist(data, section=section)
    named = rename(cases, folder, key, None if tags is None else read_tags(tags))
    out().print(f"{len(named)} cases in {folder / 'datalist.json'}, their names in {key}", markup=False)
