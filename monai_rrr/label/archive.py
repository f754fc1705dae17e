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

"""A DICOM archive on this machine: Orthanc, for cases that are no DICOM yet."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from monai_rrr.data.datalist import Case
from monai_rrr.errors import ConfigError
from monai_rrr.label.mr_series import mr_series

if find_spec("dicomweb_client") is not None:  # the extra "label"
    from dicomweb_client.api import DICOMwebClient

__all__ = ["find_orthanc", "local_archive", "send_case"]

_PLUGINS = ("/usr/lib/orthanc", "/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins")
_BATCH = 32


def find_orthanc() -> tuple[Path, Path]:
    """Return the program and its DICOMweb plugin.

    Raises:
        ConfigError: ``archive-missing``.
    """
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugins = [file for folder in _PLUGINS for file in sorted(Path(folder).glob("libOrthancDicomWeb.*"))]
    if program is None or not plugins:
        missing = "Orthanc" if program is None else "its DICOMweb plugin"
        hint = "apt-get install orthanc orthanc-dicomweb, or give the address of another archive to monai-rrr label"
        message = f"expected Orthanc with its DICOMweb plugin, {missing} is not installed here"
        raise ConfigError("archive-missing", message, hint=hint)
    return Path(program), plugins[0]


@contextmanager
def local_archive(home: Path, port: int = 8042, seconds: float = 60.0) -> Iterator[str]:
    """Run an archive on loopback, without password, until the context ends.

    Args:
        home: folder for its files and its log.
        port: to listen on.
        seconds: to wait for it.

    Returns:
        the address for DICOMweb.

    Raises:
        ConfigError: ``archive-missing``; ``archive-failed``, with the last line of its log.
    """
    program, plugin = find_orthanc()
    address, log = f"http://127.0.0.1:{port}/dicom-web", home / "orthanc.log"
    if _answers(address):
        message = f"expected a free port for the archive, something answers at {address}"
        raise ConfigError("archive-failed", message, field="port", hint="give another --port")
    settings = {
        "Name": "monai_rrr",
        "StorageDirectory": str(home / "db"),
        "IndexDirectory": str(home / "db"),
        "HttpPort": port,
        "Locale": "C",
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,  # loopback only
        "AuthenticationEnabled": False,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "WadoRoot": "/wado", "Ssl": False},
    }
    home.mkdir(parents=True, exist_ok=True)
    (home / "orthanc.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    with log.open("wb") as stream:
        process = subprocess.Popen([program, home / "orthanc.json"], stdout=stream, stderr=subprocess.STDOUT)
    try:
        _wait(process, address, log, time.monotonic() + seconds)
        yield address
    finally:
        process.terminate()
        process.wait()


def send_case(address: str, case: Case) -> tuple[str, dict[str, str]]:
    """Send a case to an archive; one that is there already is replaced by itself.

    Returns:
        its StudyInstanceUID, and the SeriesInstanceUID of each modality.
    """
    client, slices = DICOMwebClient(address), mr_series(case)
    study, series = "", []
    while batch := list(islice(slices, _BATCH)):
        client.store_instances(batch)
        study = str(batch[0].StudyInstanceUID)
        series += [str(one.SeriesInstanceUID) for one in batch]
    return study, dict(zip(case["modalities"], dict.fromkeys(series), strict=True))


def _answers(address: str) -> bool:
    try:
        DICOMwebClient(address).search_for_studies(limit=1)
    except OSError as error:  # what requests raises is one; an answer that says no is an answer
        return getattr(error, "response", None) is not None
    return True


def _wait(process: subprocess.Popen[Any], address: str, log: Path, end: float) -> None:
    while process.poll() is None and time.monotonic() < end:
        if _answers(address):
            return
        time.sleep(0.2)
    lines: Sequence[str] = log.read_text("utf-8", errors="replace").splitlines() or ["nothing"]
    errors = [line for line in lines if line.startswith("E")] or lines
    message = f"expected an archive at {address}, it did not start; the log says: {errors[-1][:300]}"
    raise ConfigError("archive-failed", message, path=log, hint="give another --port if this one is in use")
