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


"""What users install: metadata, pins and the content of the wheel."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import monai_rrr

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12")


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_requirement_above_its_floor(config: configparser.ConfigParser, python: str) -> None:
    pins = {
        canonical(pin.name): next(iter(pin.specifier)).version
        for pin in requirements((ROOT / "constraints" / "constraints.txt").read_text("utf-8"))
        if pin.marker is None or pin.marker.evaluate({"python_version": python})
    }
    extras = config["options.extras_require"]
    wanted = requirements(
        "\n".join([config["options"]["install_requires"], *(extras[k] for k in extras if k not in ("label", "bench"))])
    )
    missing = {r.name: pins.get(canonical(r.name)) for r in wanted if pins.get(canonical(r.name)) not in r.specifier}
    assert missing == {}


LABEL_EXTRA = {"dicomweb_client", "monailabel", "pydicom", "requests_toolbelt", "starlette"}


def test_every_import_of_the_package_is_a_requirement(config: configparser.ConfigParser) -> None:
    declared = {canonical(r.name) for r in requirements(config["options"]["install_requires"])}
    owners = packages_distributions()
    missing = {}
    for path in (ROOT / "monai_rrr").rglob("*.py"):
        # MONAI Label and what comes with it, in its own environment
        extra = LABEL_EXTRA if path.parent.name == "label" else set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - {"monai_rrr", *extra} - sys.stdlib_module_names:
                if not declared & {canonical(owner) for owner in owners.get(top, [])}:
                    missing[top] = path.name
    assert missing == {}


def test_makefile_installs_the_pinned_torch() -> None:
    pinned = re.search(r"^torch==(.+)$", (ROOT / "constraints" / "constraints.txt").read_text("utf-8"), re.M)
    installed = re.search(r"torch==(\S+)", (ROOT / "Makefile").read_text("utf-8"))
    assert pinned is not None
    assert installed is not None
    assert pinned[1] == installed[1]


def test_label_and_notebooks_stay_apart(config: configparser.ConfigParser) -> None:
    extras = {key: {r.name for r in requirements(text)} for key, text in config["options.extras_require"].items()}
    assert set(extras) == {"bench", "demo", "label", "notebooks", "dev"}
    # setuptools: build tool of both
    assert extras["label"] & (extras["notebooks"] | extras["dev"] | extras["demo"]) <= {"setuptools"}


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert Version(citation["version"]) == Version(monai_rrr.__version__)
    assert citation["license"] == "Apache-2.0"
    assert all(ref.get("doi") or ref.get("identifiers") for ref in citation["references"])


def test_workflows_and_hooks_are_valid_yaml() -> None:
    files = [*(ROOT / ".github" / "workflows").glob("*.yml"), ROOT / ".pre-commit-config.yaml"]
    assert len(files) >= 4
    assert all(isinstance(yaml.safe_load(path.read_text("utf-8")), dict) for path in files)


def test_ci_script_is_valid_and_needs_no_input() -> None:
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    assert "set -euo pipefail" in script.read_text("utf-8")


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"monai_rrr-{monai_rrr.__version__}.dist-info/METADATA").decode()
        scripts = archive.read(f"monai_rrr-{monai_rrr.__version__}.dist-info/entry_points.txt").decode()
    package = {f"monai_rrr/{p.relative_to(ROOT / 'monai_rrr').as_posix()}" for p in (ROOT / "monai_rrr").rglob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == package | {"monai_rrr/py.typed"}
    assert f"monai_rrr-{monai_rrr.__version__}.dist-info/licenses/LICENSE" in names
    assert "License: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert "monai-rrr = monai_rrr.cli:main" in scripts
