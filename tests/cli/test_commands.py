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


"""The command line as a user meets it: help, results, one clear text per error, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import monai_rrr
from monai_rrr.cli import app
from monai_rrr.cli.console import guarded
from monai_rrr.errors import DataError


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("MONAI_RRR_DEBUG", raising=False)


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def cohort(phantom_cohort: Path, tmp_path: Path) -> Path:
    """Return a copy of two synthetic cases that a test may damage."""
    folder = tmp_path / "data"
    for case in sorted(path for path in phantom_cohort.iterdir() if path.is_dir())[:2]:
        shutil.copytree(case, folder / case.name)
    return folder


def test_help_lists_the_commands_and_exit_codes() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for word in ("phantom", "verify", "tags", "2 something given can't be used", "not a medical device"):
        assert word in result.output


@pytest.mark.parametrize(
    "command", ["annotators", "audit", "decoy", "demo", "explain", "phantom", "report", "tags", "verify"]
)
def test_help_of_a_command_says_what_goes_in_and_gives_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: monai-rrr {command} " in result.output


def test_help_names_every_label_convention() -> None:
    from monai_rrr.utils.conventions import CONVENTIONS

    output = run("verify", "--help").output
    assert [name for name in CONVENTIONS if name not in output] == []


def test_phantom_writes_cases_and_keeps_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = run("phantom", folder, "--cases", 1, "--spacing", 6, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert f"1 cases in {folder}" in result.stdout
    names = {path.name for path in (folder / "Phantom_3_0000").iterdir()}
    assert names == {f"Phantom_3_0000_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair", "seg")}
    again = run("phantom", folder, "--cases", 1, "--spacing", 6)
    assert again.exit_code == 2
    assert "expected a new or empty folder" in again.output


def test_phantom_refuses_what_is_out_of_range(tmp_path: Path) -> None:
    result = run("phantom", tmp_path / "out", "--spacing", 30)
    assert result.exit_code == 2
    assert "--spacing" in result.output
    assert not (tmp_path / "out").exists()


def test_verify_accepts_a_good_folder(cohort: Path) -> None:
    result = run("verify", cohort, "--convention", "brats2018")
    assert result.exit_code == 0, result.output
    assert "no fault: 2 cases, 10 files read" in result.stdout


def test_verify_names_every_fault_and_exits_with_2(cohort: Path) -> None:
    first, second = sorted(cohort.iterdir())
    cut = first / f"{first.name}_flair.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-200])
    shutil.copy(second / f"{second.name}_t1.nii.gz", second / f"{second.name}_t2.nii.gz")
    result = run("verify", cohort, "--convention", "brats2018")
    assert result.exit_code == 2
    assert f"case {first.name}, field flair" in result.stdout
    assert "gzip" in result.stdout
    assert "duplicate-modality" in result.stdout
    assert "2 faults: 2 cases" in result.stdout
    assert "Traceback" not in result.output


def test_verify_prints_json_for_programs(cohort: Path) -> None:
    result = run("verify", cohort, "--convention", "brats2018", "--json", "-")
    report = json.loads(result.stdout)
    assert (report["ok"], report["cases"], report["faults"]) == (True, 2, [])


def test_verify_never_guesses_the_convention(cohort: Path) -> None:
    result = run("verify", cohort)
    assert result.exit_code == 2
    assert "expected a label convention out of brats2018, brats2023, msd, got none" in result.output
    assert run("verify", cohort, "--no-labels").exit_code == 0


def test_a_folder_that_does_not_exist_is_one_clear_text(tmp_path: Path) -> None:
    result = run("verify", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "[source-missing]" in result.output
    assert "Traceback" not in result.output


def test_tags_are_derived_then_checked_by_verify(cohort: Path, tmp_path: Path) -> None:
    table = tmp_path / "tags.csv"
    result = run("tags", cohort, table, "--convention", "brats2018")
    assert result.exit_code == 0, result.output
    assert "2 cases in" in result.stdout
    assert table.read_text().splitlines()[0] == "case_id,WT_first,WT_last,TC_first,TC_last,ET_first,ET_last"
    assert run("verify", cohort, "--convention", "brats2018", "--tags", table).exit_code == 0
    table.write_text(table.read_text().replace(",", ",9", 1))
    checked = run("verify", cohort, "--convention", "brats2018", "--tags", table)
    assert checked.exit_code == 2


def test_tags_never_overwrite_a_table_unasked(cohort: Path, tmp_path: Path) -> None:
    table = tmp_path / "tags.csv"
    table.write_text("by hand")
    result = run("tags", cohort, table, "--convention", "brats2018")
    assert result.exit_code == 2
    assert "may be somebody's work" in result.output
    assert table.read_text() == "by hand"


def test_tags_blank_is_a_table_to_fill_in(cohort: Path, tmp_path: Path) -> None:
    table = tmp_path / "tags.csv"
    assert run("tags", cohort, table, "--blank").exit_code == 0
    assert [line.split(",", 1)[1] for line in table.read_text().splitlines()[1:]] == [",,,,,"] * 2
    both = run("tags", cohort, tmp_path / "x.csv", "--blank", "--convention", "msd")
    assert both.exit_code == 2
    assert "either --convention NAME" in both.output


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError("nan", "expected finite values, got NaN", case_id="a"), 2, "error: [nan] case a: expected finite"),
        (FileNotFoundError(2, "No such file or directory", "x.csv"), 1, "error: No such file or directory: x.csv"),
        (TypeError("no"), 1, "unexpected TypeError: no"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_one_text_and_a_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @guarded
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as stopped:
        command()
    assert stopped.value.exit_code == code
    assert text in capsys.readouterr().err


def test_debug_lets_the_error_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_RRR_DEBUG", "1")

    @guarded
    def command() -> None:
        raise DataError("nan", "expected finite values, got NaN")

    with pytest.raises(DataError, match="expected finite values"):
        command()


def test_module_runs_as_a_real_process() -> None:
    def process(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "monai_rrr", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    version = process("--version")
    assert (version.returncode, version.stdout.strip()) == (0, f"monai-rrr {monai_rrr.__version__}")
    failed = process("demo", "--bundle", "nowhere")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: [bundle-missing] expected a bundle's folder, got 'nowhere'")
    assert "Traceback" not in failed.stderr
