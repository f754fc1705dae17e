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


"""Which test shows which row of the fault catalogue: a test is named after its rows, ``test_d1_truncated_gz``."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
CATALOGUE = json.loads((Path(__file__).parent / "catalogue.json").read_text("utf-8"))
ROWS = re.compile(r"test((?:_[dlgztmrpsvjhkf]\d{1,2})+)_")


def tests_by_row() -> dict[str, list[str]]:
    """Node ids of the tests of each row, relative to the repository."""
    found: dict[str, list[str]] = {row: [] for row in CATALOGUE["rows"]}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            match = ROWS.match(node.name) if isinstance(node, ast.FunctionDef) else None
            for row in match[1].strip("_").upper().split("_") if match else ():
                found.setdefault(row, []).append(f"{path.relative_to(TESTS.parent)}::{node.name}")
    return found
