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

"""A labeling server as its users start it: a process of its own, on this machine, with a small synthetic cohort."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# programs of other environments
collect_ignore = ["ohif_viewer.py", "cpu_torchvision/sitecustomize.py"]

SPEC = importlib.util.spec_from_file_location("served", Path(__file__).with_name("served.py"))
helpers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(helpers)

ROOT = helpers.ROOT
SMALL = {"spacing": 6.0, "roi_size": [32, 32, 8], "channels": [4, 8]}
SHORT = {"slabs_per_case": 1, "volumes_per_case": 1, "val_interval": 9}
START_SECONDS, TRAIN_SECONDS = 900, 1800  # on a busy machine


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    work: Path
    log: Path

    def call(self, method: str, path: str, **options: Any) -> Any:
        import requests

        return requests.request(method, f"{self.url}{path}", timeout=600, **options)

    def json(self, method: str, path: str, **options: Any) -> Any:
        answer = self.call(method, path, **options)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}\n{self.tail()}"
        return answer.json()

    def tail(self) -> str:
        return "".join(self.log.read_text("utf-8", errors="replace").splitlines(keepends=True)[-40:])

    def wait(self, task: str) -> dict[str, Any]:
        """Wait for the last background task and return what became of it."""
        end = time.monotonic() + TRAIN_SECONDS
        while time.monotonic() < end:
            found = self.json("GET", f"/{task}/")
            if found["status"] not in ("SUBMITTED", "RUNNING"):
                return found
            time.sleep(1)
        raise AssertionError(f"{task} did not end in {TRAIN_SECONDS} s\n{self.tail()}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def label_python() -> str:
    """Return the interpreter; where there is none, the test says so and is skipped."""
    found: str | None = helpers.python_with_monai_label()
    if found is None:
        pytest.skip(helpers.NOT_INSTALLED)
    return found


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return five synthetic cases, one of them without tumor."""
    from monai_rrr.data import generate_cohort

    folder = tmp_path_factory.mktemp("studies")
    generate_cohort(folder, 5, 0, 4.0, 0.2)
    return folder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that copies a bundle and gives it small random weights, with their manifest."""
    import torch
    from monai.bundle import ConfigParser

    from monai_rrr.utils.tensor_file import write_tensors

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp("bundles") / name
        shutil.copytree(
            ROOT / "bundles" / name, folder, ignore=shutil.ignore_patterns("eval", "*.pt*", "*.ts", "*.onnx")
        )
        parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.yaml"))
        parser.update({**SMALL, "bundle_root": str(folder)})
        torch.manual_seed(0)
        write_tensors(folder / "models" / "model.pt", parser.get_parsed_content("network_def").state_dict())
        return folder

    return make


@pytest.fixture(scope="session")
def serve(label_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server and waits until it answers; all are stopped in the end."""
    running: list[subprocess.Popen[bytes]] = []

    def start(studies: str | Path, bundles: list[Path], *words: str, port: int | None = None, **more: str) -> Server:
        home, port = tmp_path_factory.mktemp("server"), port or free_port()
        command = [label_python, "-m", "monai_rrr", "label", "--studies", str(studies), "--work", str(home / "work")]
        command += ["--port", str(port)]
        command += [word for bundle in bundles for word in ("--bundle", str(bundle))]
        command += [word for key, value in {**SMALL, **SHORT}.items() for word in ("--setting", f"{key}={value}")]
        command += words  # the last setting of a name counts
        path = os.pathsep.join([str(ROOT), str(helpers.SHIM)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
        log = home / "server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=environment, cwd=home, stdout=file, stderr=subprocess.STDOUT)
        running.append(process)
        server = Server(f"http://127.0.0.1:{port}", process, home / "work", log)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            try:
                if server.call("GET", "/info/").status_code == 200:
                    return server
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"the server is not up\n{server.tail()}")

    yield start
    for process in running:
        process.send_signal(signal.SIGTERM)
    for process in running:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
