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

"""The table that an evaluation leaves behind."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_rrr.utils.provenance import Provenance, write_results

__all__ = ["write_score_table"]


def write_score_table(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    provenance: Provenance,
    inputs: Mapping[str, str],
) -> None:
    """Write a CSV file and ``<name>_provenance.json``, both or none; what a row lacks is empty.

    Args:
        path: of the CSV file; its folder is made when missing.
        columns: in their order.
        rows: column -> value.
        provenance: what the results were made with.
        inputs: name -> SHA-256 of what they were compared with.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_results(path.parent, path.stem, {path.suffix: table.getvalue().encode()}, provenance, inputs)
