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


"""What every test gets: no network, few threads, a fixed random state, private folders; and the shared cohorts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from monai.utils import set_determinism

LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    """Let a connection to anything but this machine fail at once, instead of working only where there is a network."""
    originals = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex")}

    def guarded(name: str) -> Any:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
                raise RuntimeError(f"tests are offline, but something connects to {address}")
            return originals[name](self, address)

        return connect

    with pytest.MonkeyPatch.context() as patch:
        for name in originals:
            patch.setattr(socket.socket, name, guarded(name))
        yield


@pytest.fixture(scope="session", autouse=True)
def _private_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path_factory.mktemp("monai_data")))
        patch.setenv("MONAI_RRR_CACHE", str(tmp_path_factory.mktemp("verified")))
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch_home")))
        patch.delenv("MONAI_ALLOW_PICKLE", raising=False)
        yield


@pytest.fixture(autouse=True)
def _fixed_random_state() -> None:
    set_determinism(seed=0)


@pytest.fixture
def open_files() -> Callable[[Path], list[str]]:
    """Return what lists the files below a folder that this process holds open; others come and go."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("open files are listed in /proc")

    def below(folder: Path) -> list[str]:
        paths = []
        for entry in descriptors.iterdir():
            with contextlib.suppress(FileNotFoundError):
                paths.append(os.readlink(entry))
        return [path for path in paths if path.startswith(str(folder))]

    return below


@pytest.fixture(scope="session")
def brats_folder() -> Path:
    """Return the folder of real BraTS cases, or skip and say why."""
    name = os.environ.get("MONAI_RRR_BRATS", "")
    if not name:
        pytest.skip("no real cases: MONAI_RRR_BRATS does not name a folder of BraTS cases")
    folder = Path(name).expanduser().resolve()
    assert folder.is_dir(), f"MONAI_RRR_BRATS names {folder}, which is not a folder"
    return folder


@pytest.fixture(scope="session")
def phantom_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with six synthetic cases of 5 mm, the last one without tumor. Read it, never write into it."""
    from monai_rrr.data.phantom import generate_cohort

    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    generate_cohort(folder, cases=6, seed=1, spacing=5.0, controls=0.2)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that pip builds from the tracked files, tests, bundles and tutorials among them."""
    root, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in tracked.split():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((root / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run([*build, str(folder / "source")], check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("monai_rrr-*.whl")
    return built
