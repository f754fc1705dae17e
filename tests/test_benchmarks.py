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

"""Benchmarks are not run by the tests, but what they take from the package and from each other is there."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def defined(path: Path) -> set[str]:
    """Names at the top of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


def missing(path: Path) -> list[str]:
    """What a script imports and is not there."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            sibling = path.with_name(f"{node.module}.py")
            for alias in node.names:
                if sibling.is_file():
                    there = alias.name in defined(sibling)
                elif node.module.split(".")[0] == "monai_rrr":
                    there = hasattr(import_module(node.module), alias.name)
                else:
                    there = True
                found += [] if there else [f"{node.module}.{alias.name}"]
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_it_imports_is_there(path: Path) -> None:
    assert missing(path) == []


def test_a_name_that_is_gone_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("from __future__ import annotations\nLIMIT: int = 3\n")
    other = tmp_path / "other.py"
    other.write_text("from one import LIMIT, gone\nfrom monai_rrr.data import load_datalist, vanished\n")
    assert missing(other) == ["one.gone", "monai_rrr.data.vanished"]
