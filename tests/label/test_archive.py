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

"""What an archive on this machine needs is named where it is missing; ``test_ohif.py`` runs one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from monai_rrr.errors import ConfigError
from monai_rrr.label import archive


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program and its plugin, neither of which is what it seems."""
    program = tmp_path / "bin" / "Orthanc"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'E0101 00:00:00 no database'\nexit 1\n")
    program.chmod(0o755)
    (tmp_path / "libOrthancDicomWeb.so").touch()
    monkeypatch.setattr(archive, "_PLUGINS", (str(tmp_path),))
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(program) if program.exists() else None)
    return tmp_path


def test_program_and_plugin_are_found(installed: Path) -> None:
    assert archive.find_orthanc() == (installed / "bin" / "Orthanc", installed / "libOrthancDicomWeb.so")


@pytest.mark.parametrize(
    ("missing", "named"), [("bin/Orthanc", "Orthanc is not"), ("libOrthancDicomWeb.so", "its DICOMweb plugin is not")]
)
def test_what_is_missing_is_named(installed: Path, missing: str, named: str) -> None:
    (installed / missing).unlink()
    with pytest.raises(ConfigError, match=rf"\[archive-missing\].*{named} installed here"):
        archive.find_orthanc()


def test_an_archive_that_does_not_start_says_why(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_answers", lambda address: False)
    expected = r"\[archive-failed\].*it did not start; the log says: E0101 00:00:00 no database"
    with pytest.raises(ConfigError, match=expected), archive.local_archive(installed / "work", 1):
        pass
    assert (installed / "work" / "orthanc.json").is_file()


def test_a_port_where_something_answers_is_refused(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_answers", lambda address: True)
    refused = pytest.raises(ConfigError, match="expected a free port for the archive, something answers at http")
    with refused, archive.local_archive(installed / "work", 8042):
        pass
    assert not (installed / "work").exists()
