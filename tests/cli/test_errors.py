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

"""Every command meets unusable input with one text, without a traceback, and a code that is not 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from monai_rrr.cli import app
from monai_rrr.cli.console import guarded
from monai_rrr.errors import DataError

COMMANDS = sorted(str(command.callback.__name__) for command in app.registered_commands if command.callback)
WORDS: dict[str, list[str]] = {
    "annotators": ["NOWHERE", "OUT", "--convention", "brats2018"],
    "archive": ["NOWHERE"],
    "audit": ["NOWHERE", "--bundle", "brats_mri_equivariant_cam", "--convention", "brats2018", "--out", "OUT"],
    "decoy": ["NOWHERE", "OUT", "--convention", "brats2018"],
    "demo": ["--data", "NOWHERE", "--out", "OUT"],
    "explain": ["NOWHERE", "--bundle", "brats_mri_equivariant_cam", "--checkpoint", "NOWHERE/model.pt"],
    "label": ["--studies", "NOWHERE"],
    "phantom": ["FILE"],
    "pseudonymize": ["NOWHERE", "OUT", "--key", "OUT.csv"],
    "run": ["NOWHERE"],
    "report": ["NOWHERE", "--data", "NOWHERE", "--convention", "brats2018"],
    "tags": ["NOWHERE", "OUT.csv", "--convention", "brats2018"],
    "verify": ["NOWHERE", "--convention", "brats2018"],
}


@pytest.mark.parametrize("command", sorted({*COMMANDS, *WORDS}))
def test_unusable_input(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command in WORDS, f"say in WORDS which input makes `monai-rrr {command}` fail"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("no folder")
    result = CliRunner().invoke(app, [command, *WORDS[command]])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert "rror" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE"], "nothing is written"


@pytest.mark.parametrize("wrapped", ["cause", "text of a worker"])
def test_a_named_error_behind_that_of_monai(wrapped: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = DataError("non-finite", "expected finite values, got 3 NaN", case_id="a", field="t1")

    @guarded
    def command() -> None:
        if wrapped == "cause":
            raise RuntimeError("applying transform <object>") from error
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("monai_rrr.errors._in_loader_worker", lambda: True)
            text = f"Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\n{error}\nRuntimeError: x"
        raise RuntimeError(text)

    with pytest.raises(typer.Exit) as stopped:
        command()
    assert stopped.value.exit_code == 2
    assert capsys.readouterr().err.strip() == f"error: {error}"


def test_names_that_a_terminal_can_not_show(tmp_path: Path) -> None:
    error: Any = DataError("file-missing", "expected a file", path="a\udce9\x1b[31m\n.nii")
    assert str(error) == r"[file-missing] file a\udce9\x1b[31m\n.nii: expected a file"
