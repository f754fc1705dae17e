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


"""Rows S1, S2, S5, S9 to S12 and K1 of the reliability catalogue; S3 to S8 and F5 stand beside the code they test."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from monai_rrr.bundle import check_bundle
from monai_rrr.data import load_datalist
from monai_rrr.errors import CheckpointError, ConfigError, DataError, DatasetError
from monai_rrr.report import load_network
from monai_rrr.utils.manifest import verify_manifests
from monai_rrr.utils.tensor_format import check_weights

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
CAM_BUNDLE = ROOT / "bundles" / "brats_mri_equivariant_cam"


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def network_config(tmp_path: Path) -> Path:
    entry = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}
    path = tmp_path / "net.yaml"
    path.write_text(yaml.safe_dump({"network_def": entry}))
    return path


# S1: pickles given as weights


@pytest.mark.parametrize("protocol", ["zip", "legacy"])
def test_s1_pickle_as_weights_of_a_network(canary: Path, network_config: Path, protocol: str) -> None:
    path = network_config.with_name("model.pt")
    torch.save({"model": Canary(canary)}, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(CheckpointError, match=r"checkpoint-unreadable.*expected a file of tensors"):
        load_network(network_config, path)
    assert not canary.exists()


def test_s1_pickle_in_a_bundle_is_refused_before_it_is_read(canary: Path, tmp_path: Path) -> None:
    for name in ("configs", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "configs" / "train.json").write_text('{"run": []}')
    torch.save(Canary(canary), tmp_path / "models" / "model.pt")
    (refusal,) = check_bundle(tmp_path, [tmp_path / "configs" / "train.json"])
    assert (refusal.file, refusal.reason[:22]) == ("models/model.pt", "expected model.pt.json")
    assert not canary.exists()


@pytest.mark.slow
def test_s1_pickle_as_weights_of_an_inference(canary: Path, phantom_cohort: Path, tmp_path: Path) -> None:
    torch.save({"model": Canary(canary)}, tmp_path / "model.pt")
    settings = [
        "--dataset_dir",
        phantom_cohort,
        "--output_dir",
        tmp_path / "out",
        "--checkpoint",
        tmp_path / "model.pt",
        "--require_manifest",
        "False",
    ]
    done = command("run", CAM_BUNDLE, "--config", "inference", *settings, folder=tmp_path)
    assert done.returncode != 0
    assert "[checkpoint-unreadable]" in done.stdout + done.stderr
    assert not canary.exists()
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


# S2: other formats


def _script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def _pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x04cos\nmkdir\n(X\x06\x00\x00\x00canaryt\x85R.")


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/archive_format", "pt2")


FORMATS: dict[str, Callable[[Path], object]] = {
    "TorchScript": _script,
    "a pickle": _pickle,
    "a NumPy array": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"),
    "another archive": _archive,
    "a gzip archive": lambda path: path.write_bytes(b"\x1f\x8b\x08\x00"),
    "a damaged file": lambda path: path.write_bytes(b"PK\x03\x04"),
    "a program": lambda path: path.write_bytes(b"\x7fELF"),
}


@pytest.mark.parametrize("what", FORMATS)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_s2_other_formats_are_refused_by_their_first_bytes(what: str, network_config: Path) -> None:
    path = network_config.with_name("model.pt")
    FORMATS[what](path)
    with pytest.raises(CheckpointError, match=f"checkpoint-format.*expected tensors, got {what}"):
        load_network(network_config, path)


@pytest.mark.parametrize("suffix", [".ts", ".pt2", ".pte", ".pkl", ".pickle", ".npy", ".npz", ".joblib", ".zip", ".so"])
def test_s2_other_formats_are_refused_by_their_names(suffix: str, network_config: Path) -> None:
    path = network_config.with_name(f"model{suffix}")
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-format.*expected a file of tensors, such as model\.pt, got '"
    ):
        load_network(network_config, path)


@pytest.mark.parametrize("legacy", [False, True])
def test_s2_weights_pass(legacy: bool, network_config: Path) -> None:
    path = network_config.with_name("model.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), path, _use_new_zipfile_serialization=not legacy)
    check_weights(path)
    assert isinstance(load_network(network_config, path), torch.nn.Linear)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pkl", ".ts", ".pt2"])
def test_s2_other_formats_are_no_images(suffix: str, tmp_path: Path, canary: Path) -> None:
    path = tmp_path / f"case_flair{suffix}"
    np.array([Canary(canary)], dtype=object).dump(path)
    (tmp_path / "list.json").write_text(
        json.dumps(
            {"training": [{"case_id": "a", "modalities": dict.fromkeys(("t1", "t1c", "t2", "flair"), str(path))}]}
        )
    )
    from monai_rrr.data import verify_cases

    with pytest.raises((DataError, DatasetError, ConfigError)):
        verify_cases(load_datalist(tmp_path / "list.json", with_labels=False)).raise_if_faulty()
    assert not canary.exists()


# S4: a datalist is data


def test_s4_a_datalist_is_never_evaluated(tmp_path: Path, canary: Path) -> None:
    code = f"$__import__('os').mkdir('{canary}')"
    case = {"case_id": code, "modalities": {"flair": code}, "_target_": "os.mkdir", "path": str(canary)}
    (tmp_path / "list.json").write_text(json.dumps({"training": [case], "initialize": code}))
    (found,) = load_datalist(tmp_path / "list.json", with_labels=False)
    assert found["case_id"] == code
    assert not canary.exists()


# S9: what the sources may not hold

BANNED_CALLS = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load")
BANNED_CALLS += (
    "torch.hub.load",
    "torch.jit.load",
    "pickle.load",
    "pickle.loads",
    "shutil.unpack_archive",
    "pty.spawn",
)
BANNED_MODULES = ("pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "tarfile", "ftplib", "telnetlib")
NETWORK_MODULES = ("requests", "urllib.request", "http.client", "socket", "aiohttp", "httpx")


CLIENTS = ("benchmarks/serving.py", "tutorials/06_correct_where_it_looks.ipynb")
"""They ask a labeling server that they start themselves, on loopback."""


def sources() -> Iterator[tuple[str, str]]:
    for folder in ("monai_rrr", "benchmarks", "bundles"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
    for path in sorted(ROOT.glob("tutorials/**/*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        plain = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", text)
        yield path.relative_to(ROOT).as_posix(), plain


def found_in(source: str) -> list[str]:
    """Return what a source holds of what runs code, unpickles, starts shells or connects."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in (*BANNED_MODULES, *NETWORK_MODULES)]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if node.module in (*BANNED_MODULES, *NETWORK_MODULES) else []
            found += [f"{node.module}.*" for alias in node.names if alias.name == "*"]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            found += [name] if name in BANNED_CALLS else []
            found += [f"{name}(shell)"] if options.get("shell", "False") != "False" else []
            found += [name] if name == "torch.load" and options.get("weights_only") != "True" else []
            found += ["weights_only=False"] if options.get("weights_only") == "False" else []
            found += ["allow_pickle"] if options.get("allow_pickle", "False") != "False" else []
            found += ["extractall"] if isinstance(node.func, ast.Attribute) and node.func.attr == "extractall" else []
    return found


def test_s9_sources_hold_nothing_that_runs_a_file() -> None:
    names = [name for name, _ in sources()]
    assert any(name.endswith(".ipynb") for name in names)
    assert any(name.startswith("benchmarks/") for name in names)
    found = {name: found_in(source) for name, source in sources()}
    for name in CLIENTS:
        found[name] = [one for one in found[name] if one not in ("requests", "socket")]
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        *("eval('1')", "exec('1')", "import pickle", "from pickle import loads", "from monai.transforms import *"),
        *("torch.load(p)", "torch.load(p, weights_only=False)", "f(weights_only=False)", "run(c, shell=True)"),
        *("os.system('x')", "yaml.load(t, L)", "a.extractall(p)", "np.load(p, allow_pickle=True)", "import requests"),
    ],
)
def test_s9_the_scan_finds(source: str) -> None:
    assert found_in(source)


# S10: no network


OFFLINE = """
import socket, sys
class Refused(socket.socket):
    def __init__(self, *args, **kwargs):
        raise RuntimeError("no network")
def refuse(*args, **kwargs):
    raise RuntimeError("no network")
socket.socket = Refused
socket.create_connection = socket.getaddrinfo = refuse
from monai_rrr.cli import main
main()
"""


def command(*words: object, folder: Path, offline: bool = True) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", OFFLINE] if offline else [sys.executable, "-m", "monai_rrr"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    arguments = [*start, *map(str, words)]
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.slow
def test_s10_train_and_predict_without_sockets(phantom_cohort: Path, tmp_path: Path) -> None:
    from monai_rrr.data import derive_tags, write_tags

    write_tags(tmp_path / "tags.csv", derive_tags(load_datalist(phantom_cohort, with_labels=True), "brats2018"))
    small = ["--spacing", 6.0, "--roi_size", "[32,32,8]", "--channels", "[4]", "--cache_dir", tmp_path / "cache"]
    short = ["--epochs", 2, "--slabs_per_case", 1, "--val_interval", 2, "--ckpt_dir", tmp_path / "models"]
    given = ["--dataset_dir", phantom_cohort, "--output_dir", tmp_path / "run", "--tags_file", "tags.csv"]
    done = command("run", CAM_BUNDLE, "--config", "train", *given, *small, *short, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    weights = tmp_path / "models" / "model.pt"
    given = ["--dataset_dir", phantom_cohort, "--output_dir", tmp_path / "out", "--checkpoint", weights]
    done = command("run", CAM_BUNDLE, "--config", "inference", *given, *small, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    written = sorted((tmp_path / "out" / "cases").rglob("*_pred.nii.gz"))
    assert len(written) == 6
    assert nib.load(written[0]).shape == nib.load(next(phantom_cohort.rglob("*_t1.nii.gz"))).shape


# S11: what is shipped


@pytest.mark.slow
def test_s11_wheel_holds_allowed_files_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        texts = [archive.read(name).decode() for name in names]
    allowed = (
        r"monai_rrr/([a-z0-9_]+/)*[a-z0-9_]+\.(py|html|css|js|json)|monai_rrr/py\.typed|monai_rrr-[^/]+\.dist-info/.+"
    )
    assert [name for name in names if not re.fullmatch(allowed, name)] == []
    assert [name for name, text in zip(names, texts, strict=True) if SECRET.search(text)] == []


SECRET = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY|ghp_[A-Za-z0-9]{30}|AKIA[A-Z0-9]{16}|hf_[A-Za-z0-9]{30}|xox[bp]-\d")


def shipped() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "bundles"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what is shipped is what git tracks")
def test_s11_bundles_ship_allowed_files_only() -> None:
    allowed = r"[^/]+/(LICENSE|configs/\w+\.(yaml|json)|docs/(README\.md|\w+\.txt)|models/(\.gitkeep|\w+\.pt(\.json)?))"
    names = {path: path.relative_to(ROOT / "bundles").as_posix() for path in shipped()}
    assert names
    assert [name for name in names.values() if not re.fullmatch(allowed, name)] == []
    assert [
        name for path, name in names.items() if path.suffix != ".pt" and SECRET.search(path.read_text("utf-8"))
    ] == []
    for weights in (path for path in names if path.suffix == ".pt"):
        assert weights.name in verify_manifests(weights.parent)


# S12: floors

FLOORS = {"monai": "1.6.1", "torch": "2.10", "pydicom": "3.0.2", "pillow": "12.2.0"}


def test_s12_floors_are_the_safe_versions() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in parser["options"]["install_requires"].splitlines()]
    required = {item.name.lower(): item for item in map(Requirement, filter(None, lines))}
    assert {"monai", "torch"} <= set(required)
    for name in set(FLOORS) & set(required):
        lowest = [Version(one.version) for one in required[name].specifier if one.operator in (">=", "==")]
        assert lowest, f"{name} has no floor"
        assert lowest[0] >= Version(FLOORS[name])
    pins = (ROOT / "constraints" / "constraints.txt").read_text("utf-8")
    for name, floor in FLOORS.items():
        for pinned in re.findall(rf"(?im)^{name}==([\w.]+)", pins):
            assert Version(pinned) >= Version(floor), f"{name} {pinned}"


def test_s12_pickles_are_not_switched_on() -> None:
    assert "MONAI_ALLOW_PICKLE" not in os.environ


# K1: what a bundle says about itself

CARD = (
    "intended_use",
    "not_intended",
    "data_source",
    "split",
    "metrics",
    "failure_cases",
    "not_tested",
    "seed",
    "weights",
)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_k1_metadata_say_what_the_model_is_for_and_where_it_fails(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text("utf-8"))
    assert "not for diagnostic" in metadata["intended_use"]
    for key in CARD:
        assert metadata[key] or metadata[key] == 0, f"{key} says nothing"
    assert isinstance(metadata["failure_cases"], list)
    train = yaml.safe_load((bundle / "configs" / "train.yaml").read_text("utf-8"))
    assert metadata["seed"] == train["seed"]
    assert [name for name in metadata["metrics"]["results"] if not (ROOT / name).is_file()] == []
    assert "not for diagnos" in (bundle / "docs" / "README.md").read_text("utf-8").lower()
