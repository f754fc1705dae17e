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

"""Four MR series of a DICOM archive: inference over REST, and the overlay in the viewer OHIF, in a real browser."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

SPEC = importlib.util.spec_from_file_location("served", Path(__file__).with_name("served.py"))
helpers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(helpers)

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
MODEL, CASE = "brats_mri_right_reasons", "Phantom_0_0001"
NAMES = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
DESCRIPTIONS = {"t1": "T1 axial", "t1c": "T1 axial post contrast", "t2": "T2 axial", "flair": "T2 FLAIR axial"}
PANEL_PORT = 8000  # where OHIF's panel asks
ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
PLUGIN = next(iter(sorted(Path("/usr/lib/orthanc").glob("libOrthancDicomWeb.so*"))), None)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_the_parts_are_named_that_are_missing(label_python: str) -> None:
    """Says loudly what a machine lacks; the tests below are skipped then."""
    needed = {"Orthanc": ORTHANC, "its DICOMweb plugin": PLUGIN, "Chromium": CHROMIUM}
    missing = [name for name, place in needed.items() if place is None]
    if subprocess.run([label_python, "-c", "import playwright"]).returncode:
        missing.append("playwright")
    if missing:
        pytest.skip(f"NO TEST OF THE VIEWER ON THIS MACHINE: {', '.join(missing)} missing (see docs/label.md)")


@dataclass(frozen=True)
class Archive:
    url: str
    study: str
    series: dict[str, str]


@pytest.fixture(scope="module")
def archive(label_python: str, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """The command line of an archive, as a user starts it, with one case."""
    if ORTHANC is None or PLUGIN is None:
        pytest.skip("ORTHANC IS NOT INSTALLED: apt-get install orthanc orthanc-dicomweb")
    home = tmp_path_factory.mktemp("archive")
    shutil.copytree(studies / CASE, home / "studies" / CASE)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [label_python, "-m", "monai_rrr", "archive", "studies", "--port", str(port)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith(f"{CASE}: http://127.0.0.1:8000/ohif/"), f"{line}{(home / 'log').read_text()}"
        study = line.strip().rpartition("=")[2]
        assert f"monai-rrr label --studies http://127.0.0.1:{port}/dicom-web" in process.stdout.readline()
        url = f"http://127.0.0.1:{port}/dicom-web"
        listed = json.loads(urllib.request.urlopen(f"{url}/studies/{study}/series", timeout=60).read())
        named = {one["0008103E"]["Value"][0]: one["0020000E"]["Value"][0] for one in listed}
        yield Archive(url, study, {modality: named[text] for modality, text in DESCRIPTIONS.items()})
    finally:
        process.terminate()
        process.stdout.close()
        assert process.wait(30) == 0, (home / "log").read_text()
    with socket.socket() as one:
        assert one.connect_ex(("127.0.0.1", port)), "the archive ended with the command"


def test_a_port_in_use_is_named(archive: Archive, label_python: str, tmp_path: Path) -> None:
    port = archive.url.split(":")[2].split("/")[0]
    (tmp_path / "one").mkdir()
    for name in NAMES.values():
        volume = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
        nib.save(volume, tmp_path / "one" / f"one_{name}.nii.gz")
    command = [label_python, "-m", "monai_rrr", "archive", str(tmp_path), "--port", port, "--work", str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stdout
    assert "[archive-failed] field port: expected a free port" in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any], archive: Archive) -> Any:
    """The flagship as it comes, with its demonstration weights and the settings that they have."""
    with socket.socket() as one:
        if one.connect_ex(("127.0.0.1", PANEL_PORT)) == 0:
            pytest.skip(f"PORT {PANEL_PORT} IS IN USE: the viewer's panel asks there")
    bundle = helpers.ROOT / "bundles" / MODEL
    config = ConfigParser.load_config_file(bundle / "configs" / "inference.yaml")
    own = [f"{name}={config[name]}" for name in ("spacing", "roi_size", "channels")]
    return serve(archive.url, [bundle], *(word for one in own for word in ("--setting", one)), port=PANEL_PORT)


def test_any_series_of_a_study_stands_for_the_case(server: Any, archive: Archive, studies: Path) -> None:
    image = nib.load(studies / CASE / f"{CASE}_t1.nii.gz")
    answers = []
    for series in (archive.series["flair"], archive.series["t1c"]):
        answer = server.call(
            "POST", f"/infer/{MODEL}_heatmap?image={series}&output=image", data={"params": '{"levels":0}'}
        )
        assert answer.status_code == 200, f"{answer.text}\n{server.tail()}"
        answers.append(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)))
    first, second = (nib.as_closest_canonical(one) for one in answers)
    expected = nib.as_closest_canonical(image)
    assert first.shape == expected.shape
    assert np.allclose(first.affine, expected.affine, atol=1e-3), "on the voxels that the archive was made from"
    assert np.array_equal(first.get_fdata(), second.get_fdata())
    details = server.json("POST", f"/infer/{MODEL}?image={archive.series['t2']}&output=json")
    assert details["case_id"] == archive.study
    assert {f"{name}_WT" for name in NAMES} <= set(details["heatmaps"]), "all four series were found"
    assert server.call("POST", f"/infer/{MODEL}?image=1.2.3&output=json").status_code == 404


def test_the_viewer_shows_the_heatmap(server: Any, archive: Archive, label_python: str, tmp_path: Path) -> None:
    if CHROMIUM is None or subprocess.run([label_python, "-c", "import playwright"]).returncode:
        pytest.skip("NO BROWSER: apt-get install chromium; pip install playwright (see docs/label.md)")
    folder = Path(os.environ.get("MONAI_RRR_PICTURES", tmp_path)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command = [label_python, str(HERE / "ohif_viewer.py"), server.url, archive.study, f"{MODEL}_heatmap", CHROMIUM]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stderr}\n{server.tail()}"
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen.get("status") == 200, f"{seen}\n{server.tail()}"
    assert seen["loaded"]
    assert seen["drawn"]
    assert seen["errors"] == []
    assert seen["colored"] >= 500, seen
