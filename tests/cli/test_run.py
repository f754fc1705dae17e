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


"""``monai-rrr run``: a bundle that passes the gate runs as with MONAI; one that does not ends in one clear text."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import monai_rrr.bundle
from monai_rrr.cli import app
from monai_rrr.cli.bundle_run import config_files, find_bundle, run_bundle
from monai_rrr.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTILE = ["../../x", "/abs", "a\x00b", "$(touch canary)", ";", "a\nb", "x" * 5000, "\u202eabc", "CON", "..", "-rf"]


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("MONAI_RRR_DEBUG", raising=False)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    home = tmp_path / "bundle"
    (home / "configs").mkdir(parents=True)
    metadata = REPOSITORY / "bundles" / "brats_mri_equivariant_cam" / "configs" / "metadata.json"
    shutil.copy(metadata, home / "configs")
    content = {"bundle_root": ".", "epochs": 2, "names": ["a"], "run": ["$print('ran', @epochs, @names, @bundle_root)"]}
    (home / "configs" / "train.json").write_text(json.dumps(content))
    (home / "configs" / "twice.yaml").write_text("epochs: $2 * 2\n")
    return home


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, ["run", *(str(word) for word in words)])


def test_bundle_runs_from_anywhere_with_overlays_and_overrides(bundle: Path) -> None:
    result = run(bundle)
    assert result.exit_code == 0, result.output
    assert f"ran 2 ['a'] {bundle}" in result.stdout
    result = run(bundle, "--config", "train", "--config", "twice.yaml", "--names", "['b', 1]", "--names#0=c")
    assert result.exit_code == 0, result.output
    assert f"ran 4 ['c', 1] {bundle}" in result.stdout
    assert not list(bundle.rglob("*.pyc"))


def test_help_says_what_goes_in_and_gives_an_example() -> None:
    output = run("--help").output
    assert "Example: monai-rrr run brats_mri_equivariant_cam " in output
    assert "--trust" in output


def test_code_is_refused_by_file_and_key_and_with_the_hash(bundle: Path, tmp_path: Path) -> None:
    code = f"$__import__('os').mkdir('{tmp_path / 'canary'}')"
    (bundle / "configs" / "twice.yaml").write_text(json.dumps({"epochs": code}))
    result = run(bundle, "--config", "train", "--config", "twice", "--x", code)
    assert result.exit_code == 2
    assert "[bundle-refused]" in result.output
    assert "2 refused:" in result.output
    assert "configs/twice.yaml /epochs: the name '__import__' is not allowed" in result.output
    assert "command line /x: the name '__import__' is not allowed" in result.output
    assert f"--trust {monai_rrr.bundle.content_hash(bundle)}" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "canary").exists()


def test_reviewed_bundle_runs_its_code(bundle: Path) -> None:
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "reviewed.py").write_text("def value():\n    return 'from the script'\n")
    content = {"imports": ["$from scripts.reviewed import value"], "run": ["$print(value())"]}
    (bundle / "configs" / "train.json").write_text(json.dumps(content))
    digest = monai_rrr.bundle.content_hash(bundle)
    assert run(bundle).exit_code == 2
    assert run(bundle, "--trust", "1" * 64).exit_code == 2
    for _ in range(2):  # a run leaves nothing that would change the hash
        result = run(bundle, "--trust", digest)
        assert result.exit_code == 0, result.output
        assert "from the script" in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--args_file", "x.json"],
        ["--config_file", "x.json"],
        ["--meta_file=x.json"],
        ["--logging_file", "x.conf"],
        ["--tracking", "mlflow"],
        ["--workflow_name", "os.system"],
        ["--properties_path", "x"],
    ],
)
def test_ways_around_the_gate_are_no_overrides(bundle: Path, words: list[str]) -> None:
    result = run(bundle, *words)
    assert result.exit_code == 2
    assert "[override]" in result.output


@pytest.mark.parametrize(("words", "text"), [(["x"], "expected --KEY VALUE"), (["--a", "1", "--a=2"], "given twice")])
def test_overrides_that_make_no_sense(bundle: Path, words: list[str], text: str) -> None:
    result = run(bundle, *words)
    assert result.exit_code == 2
    assert text in result.output


@pytest.mark.parametrize("name", HOSTILE)
def test_s6_hostile_names_of_configs_are_named_errors(bundle: Path, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config-missing.*expected a configuration out of train, twice, got "):
        config_files(bundle, [name])
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["a\x00b", "x" * 5000, "\u202eabc", "$(touch canary)", ";"])
def test_s6_hostile_names_of_bundles_are_named_errors(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bundle-missing"):
        find_bundle(name)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_s7_archives_are_never_unpacked(bundle: Path, kind: str, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), kind, bundle.parent, bundle.name)
    before = sorted(tmp_path.rglob("*"))
    result = run(archive)
    assert result.exit_code == 2
    assert "[bundle-missing] expected a bundle's folder" in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_bundles_that_other_commands_run_go_through_the_gate(bundle: Path, tmp_path: Path) -> None:
    (bundle / "configs" / "train.json").write_text(json.dumps({"run": [{"_target_": "os.mkdir", "path": "canary"}]}))
    with pytest.raises(ConfigError, match=r"(?s)bundle-refused.*configs/train.json /run/0/_target_: 'os.mkdir'"):
        run_bundle("training", bundle, ["train.json"], {}, tmp_path / "log.txt", lambda: (0, 0))
    assert not (bundle / "canary").exists()
    assert not (tmp_path / "log.txt").exists()
