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

"""All bundles in MONAI Label's own app, unmodified: inference, and training from the labels of its data store."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from monai_rrr.utils.tensor_file import write_tensors

SPEC = importlib.util.spec_from_file_location("served", Path(__file__).with_name("served.py"))
helpers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(helpers)

pytestmark = pytest.mark.slow

GUIDED = "brats_mri_guided_attention"
WITH_ANNOTATORS = ("brats_mri_annotator_tendency", "brats_mri_right_reasons")
HERE = Path(__file__).parent
CASE = "Phantom_0_0001"
NAMES = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
SECONDS = 900


@pytest.fixture(scope="module")
def app(label_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MONAI Label's app with our bundles as they are, each with random weights."""
    home = tmp_path_factory.mktemp("stock")
    command = [label_python, "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", home]
    environment = {**os.environ, "PYTHONPATH": str(HERE / "cpu_torchvision")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for name in helpers.BUNDLES:
        folder = home / "monaibundle" / "model" / name
        skipped = shutil.ignore_patterns("eval", "*.pt*", "*.ts", "*.onnx")
        shutil.copytree(helpers.ROOT / "bundles" / name, folder, ignore=skipped)
        parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.yaml"))
        torch.manual_seed(0)
        network = parser.get_parsed_content("network_def")
        state = network.state_dict()
        if "operating_point" in state:  # any evidence is tumor; by the thresholds of a new network none is
            state["operating_point"][:] = 0
        write_tensors(folder / "models" / "model.pt", state)
    return home / "monaibundle"


@pytest.fixture(scope="module")
def data(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases as sibling files in one folder, one as a 4-D file too, and final labels, as MONAI Label keeps them."""
    folder = tmp_path_factory.mktemp("stock_studies")
    final = folder / "labels" / "final"
    final.mkdir(parents=True)
    for case in sorted(path.name for path in studies.iterdir() if path.is_dir()):
        values, affine = helpers.served_values(studies / case / f"{case}_seg.nii.gz")
        for alias in NAMES.values():
            shutil.copy(studies / case / f"{case}_{alias}.nii.gz", folder)
        (final / f"{case}_flair.nii.gz").write_bytes(helpers.as_file(values, affine))
    images = [nib.load(folder / f"{CASE}_{alias}.nii.gz") for alias in NAMES.values()]
    stack = np.stack([np.asarray(image.dataobj) for image in images], -1)
    nib.save(nib.Nifti1Image(stack, images[0].affine), folder / "stacked.nii.gz")
    return folder


@pytest.fixture(scope="module")
def server(label_python: str, app: Path, data: Path) -> Iterator[Any]:
    import socket

    import requests

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [label_python, "-m", "monailabel.main", "start_server", "--app", app, "--studies", data]
    command += ["--host", "127.0.0.1", "--port", port, "--conf", "models", ",".join(helpers.BUNDLES)]
    command += ["--conf", "zoo_source", "ngc", "--conf", "sam2", "false"]
    path = os.pathsep.join([str(helpers.ROOT), str(HERE / "cpu_torchvision")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with (app / "server.log").open("wb") as log:
        process = subprocess.Popen(list(map(str, command)), env=environment, cwd=app, stdout=log, stderr=log)

    def call(method: str, route: str, **options: Any) -> Any:
        return requests.request(method, f"http://127.0.0.1:{port}{route}", timeout=SECONDS, **options)

    end = time.monotonic() + SECONDS
    while True:
        try:
            if call("GET", "/info/").status_code == 200:
                break
        except OSError:
            pass
        assert process.poll() is None, (app / "server.log").read_text()[-4000:]
        assert time.monotonic() < end
        time.sleep(0.5)
    yield call
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def voxels(server: Any, model: str, image: str) -> Any:
    answer = server("POST", f"/infer/{model}?image={image}&output=image", data={"params": '{"device": "cpu"}'})
    assert answer.status_code == 200, answer.text
    return nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))


@pytest.mark.parametrize("name", helpers.BUNDLES)
def test_inference(server: Any, data: Path, name: str) -> None:
    info = server("GET", "/info/").json()
    values = {"background": 0, "necrotic and non-enhancing core": 1, "edema": 2, "enhancing tumor": 3}
    assert info["models"][name]["labels"].items() <= values.items()
    assert name in info["trainers"]
    image = nib.load(data / f"{CASE}_flair.nii.gz")
    sibling, stacked = voxels(server, name, f"{CASE}_flair"), voxels(server, name, "stacked")
    assert sibling.shape == image.shape
    assert np.allclose(sibling.affine, image.affine)
    found = np.unique(sibling.get_fdata())
    assert set(found) <= {0, 1, 2, 3}
    assert np.array_equal(sibling.get_fdata(), stacked.get_fdata())


def test_thresholds_come_with_the_weights(server: Any) -> None:
    """The app reads weights into a copy of the network; the thresholds among them are found all the same."""
    assert len(np.unique(voxels(server, GUIDED, f"{CASE}_flair").get_fdata())) > 1


def wait(server: Any) -> dict[str, Any]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        task: dict[str, Any] = server("GET", "/train/").json()
        if task["status"] not in ("SUBMITTED", "RUNNING"):
            return task
        time.sleep(1)
    raise AssertionError("the training did not end")


@pytest.mark.parametrize("name", [name for name in helpers.BUNDLES if name not in WITH_ANNOTATORS])
def test_training(server: Any, app: Path, name: str) -> None:
    manifest = app / "model" / name / "models" / "model.pt.json"
    before = json.loads(manifest.read_text())["sha256"]
    params = {"max_epochs": 1, "val_split": 0.3, "device": "cpu", "multi_gpu": False}
    assert server("POST", f"/train/{name}", json=params).status_code == 200
    task = wait(server)
    assert task["status"] == "DONE", "\n".join(task["details"])
    after = json.loads(manifest.read_text())
    assert after["sha256"] != before
    assert after["trained"]["cases"] == 5
    assert voxels(server, name, f"{CASE}_flair").shape


@pytest.mark.parametrize("name", WITH_ANNOTATORS)
def test_training_of_annotators_says_what_is_missing(server: Any, app: Path, name: str) -> None:
    """In the log: what the app keeps of it are the last lines, and MONAI's own error comes after ours."""
    start = (app / "server.log").stat().st_size
    params = {"max_epochs": 1, "val_split": 0.3, "device": "cpu", "multi_gpu": False}
    assert server("POST", f"/train/{name}", json=params).status_code == 200
    task = wait(server)
    assert task["status"] == "ERROR"
    assert b"[label-annotator]" in (app / "server.log").read_bytes()[start:]
