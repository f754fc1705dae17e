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


"""What the README promises: its Python examples run, its links and commands exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from monai_rrr.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_python_example_runs(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[number], encoding="utf-8")
    runpy.run_path(str(script))
    printed = capsys.readouterr().out.strip()
    promised = re.findall(r"print\(.*\)  # (.+)$", EXAMPLES[number], re.M)
    assert printed
    assert all(text in printed for text in promised)


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_commands_and_their_options_exist() -> None:
    for command, words in re.findall(r"monai-rrr ([a-z]+)([^`\n]*)", README):
        result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert result.exit_code == 0, command
        assert [option for option in re.findall(r"--[\w-]+", words) if option not in result.output] == []


def test_every_planned_method_says_so() -> None:
    rows = README.split("## Methods")[1].splitlines()
    bundles = [row for row in rows if row.startswith("| [") and "](bundles/" in row]
    assert len(bundles) == len(list((ROOT / "bundles").glob("*/configs/metadata.json")))


def test_it_is_said_that_this_is_for_research_only() -> None:
    assert "For research only. Not a medical device" in README
