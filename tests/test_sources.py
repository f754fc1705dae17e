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


"""Rules that hold for every source file: license header, and no construct that runs what a file says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("monai_rrr", "tests", "benchmarks", "tutorials")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PACKAGE = [path for path in SOURCES if path.is_relative_to(ROOT / "monai_rrr")]
HEADER = (ROOT / "monai_rrr" / "__init__.py").read_text("utf-8").split('\n"""')[0]

FORBIDDEN_CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "__import__": "hides an import",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "yaml.load": "builds objects; use yaml.safe_load",
    "yaml.unsafe_load": "builds objects; use yaml.safe_load",
    "torch.hub.load": "downloads code",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}


def faults(source: str) -> list[str]:
    return [f"line {node.lineno}: {text}" for node in ast.walk(ast.parse(source)) for text in _faults(node)]


def _faults(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"imports {a.name}" for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
    if isinstance(node, ast.ImportFrom):
        star = ["star import"] if any(a.name == "*" for a in node.names) else []
        return star + ([f"imports {node.module}"] if (node.module or "").split(".")[0] in FORBIDDEN_MODULES else [])
    if isinstance(node, ast.Call):
        return _call_faults(node)
    return []


def _call_faults(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    values = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    found = [f"{name}: {FORBIDDEN_CALLS[name]}"] if name in FORBIDDEN_CALLS else []
    if values.get("shell", "False") != "False":
        found.append("shell=True")
    if name == "torch.load" and values.get("weights_only") != "True":
        found.append("torch.load without weights_only=True")
    if name in ("np.load", "numpy.load") and values.get("allow_pickle") != "False":
        found.append(f"{name} without allow_pickle=False")
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stat().st_size], ids=relative)
def test_source_has_the_license_header(path: Path) -> None:
    assert path.read_text("utf-8").startswith(HEADER)


@pytest.mark.parametrize("path", PACKAGE, ids=relative)
def test_package_runs_nothing_that_a_file_says(path: Path) -> None:
    assert faults(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", PACKAGE, ids=relative)
def test_package_module_has_a_docstring_and_no_assert(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), f"{relative(path)} says nothing about itself"
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_source_names_no_home_folder(path: Path) -> None:
    places = ["/" + "home/", "/" + "Users/", "C:" + "\\Users"]
    assert [place for place in places if place in path.read_text("utf-8")] == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("eval('1')", "line 1: eval: runs text"),
        ("import os\nos.system('ls')", "line 2: os.system: runs a shell"),
        ("subprocess.run(c, shell=True)", "line 1: shell=True"),
        ("torch.load(path)", "line 1: torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "line 1: torch.load without weights_only=True"),
        ("np.load(path)", "line 1: np.load without allow_pickle=False"),
        ("from pickle import loads", "line 1: imports pickle"),
        ("from monai.transforms import *", "line 1: star import"),
        ("yaml.load(text, Loader=L)", "line 1: yaml.load: builds objects; use yaml.safe_load"),
    ],
)
def test_the_checker_finds(source: str, fault: str) -> None:
    assert faults(source) == [fault]


@pytest.mark.parametrize("source", ["model.eval()", "torch.load(p, weights_only=True)", "run(c, shell=False)"])
def test_the_checker_accepts(source: str) -> None:
    assert faults(source) == []
