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


"""Imports point downwards: a module uses only strictly lower layers, and never to what stands beside the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monai_rrr"
LAYER = {
    "__init__": 0,
    "errors": 0,
    "utils": 1,
    **dict.fromkeys(("attribution", "losses", "transforms", "metrics", "data", "bundle"), 2),
    **dict.fromkeys(("networks", "objectives"), 3),
    **dict.fromkeys(("engines", "inferers", "handlers"), 4),
    "report": 5,
    "label": 6,
    "cli": 7,
    "__main__": 8,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def absolute_imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield what is imported anywhere in a module of `package`, functions included, as dotted parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = tuple((node.module or "").split(".")) if node.module else ()
            base = package[: len(package) - node.level + 1] + module if node.level else module
            yield from ((*base, alias.name) for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    package = ("monai_rrr", *path.relative_to(PACKAGE).parent.parts)
    names = {name for name in absolute_imports(ast.parse(path.read_text("utf-8")), package) if name[0] == "monai_rrr"}
    return {name[1] for name in names if len(name) > 1 and not name[1].startswith("__version")}


def violations(path: Path) -> list[str]:
    here = part_of(path)
    return sorted(
        f"{path.relative_to(ROOT)} (layer {LAYER[here]}) imports monai_rrr.{other} (layer {LAYER.get(other)})"
        for other in imported_parts(path) - {here}
        if other not in LAYER or LAYER[other] >= LAYER[here]
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    assert violations(path) == []


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {part_of(path) for path in MODULES} <= set(LAYER)


def test_package_init_imports_nothing() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    assert [name for name in absolute_imports(tree, ("monai_rrr",)) if name[0] != "__future__"] == []


def test_package_never_imports_what_stands_beside_it() -> None:
    beside = {"bundles", "benchmarks", "tutorials", "tests", "conftest"}
    for path in MODULES:
        package = ("monai_rrr", *path.relative_to(PACKAGE).parent.parts)
        assert not beside & {name[0] for name in absolute_imports(ast.parse(path.read_text("utf-8")), package)}, path


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from monai_rrr.losses import X", ("monai_rrr", "data"), ("monai_rrr", "losses", "X")),
        ("from monai_rrr import losses", ("monai_rrr", "data"), ("monai_rrr", "losses")),
        ("from ..losses import X", ("monai_rrr", "data"), ("monai_rrr", "losses", "X")),
        ("from .. import losses", ("monai_rrr", "data"), ("monai_rrr", "losses")),
        ("def f():\n    import monai_rrr.losses.x", ("monai_rrr", "data"), ("monai_rrr", "losses", "x")),
    ],
)
def test_the_checker_sees_every_way_to_import(source: str, package: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert list(absolute_imports(ast.parse(source), package)) == [expected]


def test_the_checker_reports_an_upward_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    bad = tmp_path / "data" / "bad.py"
    bad.write_text("def f():\n    from ..objectives import Objective\n    from monai_rrr import metrics\n")
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert violations(bad) == [
        "data/bad.py (layer 2) imports monai_rrr.metrics (layer 2)",
        "data/bad.py (layer 2) imports monai_rrr.objectives (layer 3)",
    ]


def test_bundles_hold_no_python() -> None:
    assert sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "bundles").rglob("*.py")) == []
