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

"""``monai-rrr archive``: cases of a folder in a DICOM archive on this machine, for the viewer OHIF."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from .console import counted, guarded, out, progress
from .label_launch import check_extra
from .verify import DATA_HELP

__all__ = ["archive"]


@guarded
def archive(
    data: Annotated[Path, typer.Argument(help=DATA_HELP)],
    section: Annotated[str, typer.Option(help="Section of a JSON datalist.")] = "training",
    work: Annotated[Path, typer.Option(help="Folder for the files of the archive.")] = Path("archive_work"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="To listen on, on this machine alone.")] = 8042,
) -> None:
    """Show cases that are no DICOM yet in OHIF: as MR series in an archive (Orthanc) that runs until Ctrl-C.

    Needs Orthanc with its DICOMweb plugin, and the extra "label". The archive has no password and can be reached from
    this machine only. Then, in another terminal, monai-rrr label --studies with the address that is printed.

    Example: monai-rrr archive studies
    """
    from monai_rrr.data import load_datalist

    cases = load_datalist(data, section=section, with_labels=False)
    check_extra()
    from monai_rrr.label.archive import local_archive, send_case

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the archive ends as well
    with local_archive(work.resolve(), port) as address:
        with progress("cases sent") as step:
            studies = {case["case_id"]: send_case(address, case)[0] for case in counted(cases, step)}
        for case_id, study in studies.items():
            out().print(f"{case_id}: http://127.0.0.1:8000/ohif/monai-label?StudyInstanceUIDs={study}", markup=False)
        out().print(
            f"{len(studies)} studies; monai-rrr label --studies {address}; Ctrl-C ends the archive", markup=False
        )
        threading.Event().wait()
