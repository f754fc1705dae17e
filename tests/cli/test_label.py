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

"""The server starts where it may, and says in one sentence why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from monai_rrr.cli import app
from monai_rrr.cli.label_launch import check_host, prepare, server_command
from monai_rrr.errors import ConfigError

OPEN, CLOSED = {"MONAI_LABEL_AUTH_ENABLE": "true"}, {"MONAI_LABEL_AUTH_ENABLE": "false"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_v1_this_machine_needs_no_login(host: str) -> None:
    check_host(host, tls=False, environment={})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
@pytest.mark.parametrize(
    ("tls", "environment"),
    [(True, {}), (False, OPEN), (False, {}), (True, {**OPEN, "MONAI_LABEL_AUTH_ENABLE": "false"})],
)
def test_v1_an_open_host_needs_login_and_tls(host: str, tls: bool, environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"\[open-host\]"):
        check_host(host, tls, environment)
    check_host(host, tls=True, environment=OPEN)


def test_v1_the_command_refuses_an_open_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONAI_LABEL_AUTH_ENABLE", raising=False)
    words = ["label", "--studies", str(tmp_path), "--host", "0.0.0.0", "--work", str(tmp_path / "work")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "MONAI_LABEL_AUTH_ENABLE=true" in result.output
    assert not (tmp_path / "work").exists()


def test_without_the_extra_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_rrr.cli.label_launch.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["label", "--studies", str(tmp_path), "--work", str(tmp_path / "work")])
    assert result.exit_code == 2
    assert "[extra-missing]" in result.output
    assert "make install-label" in result.output
    assert not (tmp_path / "work").exists()


def test_the_work_folder_is_private_and_bundles_are_copied(tmp_path: Path) -> None:
    bundle = tmp_path / "original" / "b"
    (bundle / "models").mkdir(parents=True)
    (bundle / "models" / "model.pt").write_bytes(b"weights")
    (bundle / "eval").mkdir()
    folder, environment = prepare(tmp_path / "work", [bundle], {"spacing": 6.0}, None)
    assert (folder / "tmp").stat().st_mode & 0o777 == 0o700
    assert Path(environment["TMPDIR"]) == folder / "tmp"
    options = json.loads((folder / "label.json").read_text())
    assert options["settings"] == {"spacing": 6.0}
    copy = Path(options["bundles"][0])
    assert (copy / "models" / "model.pt").read_bytes() == b"weights"
    assert not (copy / "eval").exists()
    (copy / "models" / "model.pt").write_bytes(b"trained")
    prepare(tmp_path / "work", [bundle], {}, None)
    assert (copy / "models" / "model.pt").read_bytes() == b"trained", "what was trained survives a restart"


def test_the_server_runs_behind_the_guard(tmp_path: Path) -> None:
    command = server_command(tmp_path, "studies", "127.0.0.1", 8000)
    assert command[command.index("--uvicorn_app") + 1] == "monai_rrr.label.server:app"
    assert command[command.index("--host") + 1] == "127.0.0.1"
