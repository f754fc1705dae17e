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


"""Tutorials follow the conventions of Project-MONAI's, hold no output, and run."""

from __future__ import annotations

import importlib.util
import os
import shlex
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

SPEC = importlib.util.spec_from_file_location("served", Path(__file__).parents[1] / "label" / "served.py")
helpers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(helpers)

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.ipynb"))
HEADER = [
    "Copyright (c) monai_rrr contributors  ",
    'Licensed under the Apache License, Version 2.0 (the "License");  ',
    "you may not use this file except in compliance with the License.  ",
    "You may obtain a copy of the License at  ",
    "&nbsp;&nbsp;&nbsp;&nbsp;http://www.apache.org/licenses/LICENSE-2.0  ",
]


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_there_are_tutorials() -> None:
    assert [path.stem for path in TUTORIALS] == [
        "01_tags_to_segmentation",
        "02_find_and_repair_a_shortcut",
        "03_fine_tune_without_labels",
        "04_classifier_to_segmenter",
        "05_who_and_why",
        "06_correct_where_it_looks",
        "07_your_own_brats_folder",
    ]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_structure(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    cells = notebook.cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.splitlines()[: len(HEADER)] == HEADER
    titles = [cell.source.splitlines()[0] for cell in cells[1:] if cell.cell_type == "markdown"]
    assert titles[:2] == ["## Setup environment", "## Setup imports"]
    assert titles[-1] == "## Cleanup data directory"
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert code[1].endswith("print_config()")
    assert all("import " not in source for source in code[2:])
    assert "FAST = False" in code[2]
    assert "max_epochs = " in code[2]
    assert "val_interval = " in code[2]
    assert max(len(line) for source in code for line in source.splitlines()) <= 120


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_nothing_but_source_is_stored(path: Path) -> None:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)
    assert path.stat().st_size < 100_000


@pytest.fixture
def label_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program that runs the Python of the environment with MONAI Label; without one, the test says so."""
    found = helpers.python_with_monai_label()
    if found is None:
        pytest.skip(helpers.NOT_INSTALLED)
    program = tmp_path_factory.mktemp("label") / "python"
    path = shlex.quote(os.pathsep.join([str(helpers.ROOT), str(helpers.SHIM)]))
    program.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.quote(found)} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_j1_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "MONAI_RRR_LABEL_PYTHON" in path.read_text("utf-8"):
        monkeypatch.setenv("MONAI_RRR_LABEL_PYTHON", str(request.getfixturevalue("label_python")))
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = read(path)
    for cell in notebook.cells:
        cell.source = cell.source.replace("FAST = False", "FAST = True")
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(pictures) >= 3
    assert list(tmp_path.iterdir()) == []
