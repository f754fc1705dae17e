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

"""Every error code of the package is on the page that explains it, and the page explains no other."""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
CLASSES = ("RRRError", "DataError", "ConfigError", "CheckpointError", "TrainingError", "DatasetError")
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")
ROW = re.compile(r"^\| `([^`]*)` \| (.*?) \| (.*?) \|$", re.MULTILINE)


def codes_in(source: str) -> Iterator[tuple[str, int]]:
    """Yield the codes and lines of `SomeError("code", ...)`, `x.fault("code", ...)` and `x.note("code", ...)`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        error = name in CLASSES or (name.endswith("Error") and len(node.args) > 1 and not name.startswith("_"))
        words = [keyword.value for keyword in node.keywords if keyword.arg == "code"] + node.args[:1]
        if name == "__init__" and node.args:  # super().__init__("code", ...) of an error class
            error = isinstance(node.args[0], ast.Constant) and len(node.args) > 1
        if (error or name in ("fault", "note")) and words:
            for code in texts_of(words[0]):
                if CODE.match(code.replace("*", "x")):
                    yield code, node.lineno


def texts_of(node: ast.expr) -> Iterator[str]:
    """Yield the constant texts of an expression; what an f-string puts in becomes ``*``."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from (*texts_of(node.body), *texts_of(node.orelse))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


@lru_cache
def raised() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "monai_rrr").rglob("*.py")):
        for code, line in codes_in(path.read_text("utf-8")):
            found.setdefault(code, []).append(f"{path.relative_to(ROOT).as_posix()}:{line}")
    return found


def test_every_code_is_explained() -> None:
    explained = {code for code, _, _ in ROW.findall(PAGE.read_text("utf-8"))}
    missing = {code: places for code, places in raised().items() if not fnmatch.filter(explained, code)}
    lines = [f"| `{code}` | CAUSE | CURE |   <- {', '.join(places)}" for code, places in sorted(missing.items())]
    assert not missing, "docs/errors.md lacks these codes; add a row in the table of their kind:\n" + "\n".join(lines)


def test_every_explained_code_exists() -> None:
    explained = {code for code, _, _ in ROW.findall(PAGE.read_text("utf-8"))}
    left = sorted(code for code in explained if not any(fnmatch.fnmatch(code, pattern) for pattern in raised()))
    assert not left, f"docs/errors.md explains codes that nothing raises any more; remove their rows: {', '.join(left)}"


def test_rows_are_complete_and_sorted() -> None:
    for table in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE):
        rows = ROW.findall(table)
        codes = [code for code, _, _ in rows]
        assert codes == sorted(set(codes)), "one row per code, in alphabetical order"
        assert all(len(cause) > 10 and len(cure) > 10 for _, cause, cure in rows)


@pytest.mark.parametrize(
    ("source", "codes"),
    [
        ('DataError("a-b", "text")', ["a-b"]),
        ('raise errors.ConfigError("a-b", f"{x}", path=p)', ["a-b"]),
        ('DataError("a" if x else "b", "text")', ["a", "b"]),
        ('TrainingError(f"{what}-not-finite", "text")', ["*-not-finite"]),
        ('_RowError("field", "text")', []),
        ('DataError(code="a-b", message="text")', ["a-b"]),
        ('result.fault("a-b", "text"); self.note("c", "text")', ["a-b", "c"]),
        ('super().__init__("a-b", "text")', ["a-b"]),
        ("DataError(error.code, error.message)", []),
        ('ValueError("expected two")', []),
        ('other("a-b")', []),
    ],
)
def test_the_collector_sees_every_way_to_name_a_code(source: str, codes: list[str]) -> None:
    assert sorted(code for code, _ in codes_in(source)) == codes
