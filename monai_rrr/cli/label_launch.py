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

"""Start the server: check the place where it listens, prepare its work folder, hand over to MONAI Label."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai_rrr.errors import ConfigError
from monai_rrr.utils.files import atomic_write, whole_folder

__all__ = ["check_extra", "check_host", "prepare", "server_command"]

AUTH = "MONAI_LABEL_AUTH_ENABLE"
_MAIN = '''"""Written by monai-rrr label: MONAI Label looks for the app here."""

from monai_rrr.label.app import RightReasonsApp

__all__ = ["RightReasonsApp"]
'''


def check_extra() -> None:
    """Refuse to start without MONAI Label, or with the versions of its parts that break it.

    Raises:
        ConfigError: ``extra-missing``.
    """
    hint = "make install-label, or pip install -c constraints/label.txt 'monai-rrr[label]' in an environment of its own"
    if find_spec("monailabel") is None:
        raise ConfigError("extra-missing", "expected MONAI Label, it is not installed here", hint=hint)


def check_host(host: str, tls: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a place that others can reach, unless they must log in over an encrypted connection.

    Without authentication MONAI Label treats everybody as an administrator.

    Args:
        host: name or address to listen on.
        tls: whether there are key and certificate.
        environment: ``MONAI_LABEL_AUTH_ENABLE`` switches authentication on.

    Raises:
        ConfigError: ``open-host``.

    Example:
        >>> check_host("127.0.0.1", tls=False)
        >>> check_host("0.0.0.0", tls=True, environment={"MONAI_LABEL_AUTH_ENABLE": "true"})
    """
    if host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:  # a name may lead anywhere
        pass
    missing = [] if environment.get(AUTH, "").lower() in ("1", "true", "yes", "on") else [f"{AUTH}=true"]
    missing += [] if tls else ["--ssl-keyfile and --ssl-certfile"]
    if missing:
        message = f"expected a host of this machine, such as 127.0.0.1, got {host!r}, which others can reach"
        hint = f"keep the server local (ssh -L reaches it from elsewhere), or give {' and '.join(missing)}"
        raise ConfigError("open-host", message, field="host", hint=hint)


def prepare(
    work: Path, bundles: Sequence[Path], settings: Mapping[str, Any], tags: Path | None
) -> tuple[Path, dict[str, str]]:
    """Fill the work folder; the folders of bundles and images are not written to.

    Each bundle is copied once; training then changes the copy. Weights that were replaced in the original since do not
    come along: remove the copy to start anew.

    Args:
        work: the folder.
        bundles: folders of bundles.
        settings: entries of their configurations to override.
        tags: table of slice tags.

    Returns:
        the folder for MONAI Label, and its environment.
    """
    work = work.resolve()
    for name in ("tmp", "sessions", "dicom"):
        (work / name).mkdir(parents=True, exist_ok=True)
        (work / name).chmod(0o700)
    copies = []
    for bundle in bundles:
        copy = work / "bundles" / bundle.name
        if not copy.exists():
            skipped = shutil.ignore_patterns("eval", "resume", ".tmp_*", "__pycache__")
            copy.parent.mkdir(parents=True, exist_ok=True)
            with whole_folder(copy) as part:
                shutil.copytree(bundle, part, ignore=skipped)
        copies.append(str(copy))
    options = {"bundles": copies, "settings": dict(settings), "tags": None if tags is None else str(tags.resolve())}
    atomic_write(work / "label.json", json.dumps(options, indent=1).encode())
    atomic_write(work / "main.py", _MAIN.encode())
    environment = {
        "TMPDIR": str(work / "tmp"),
        "MONAI_LABEL_SESSION_PATH": str(work / "sessions"),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(work / "dicom"),
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality":"MR"}',
        # two processes that fetch one series at once leave half of it
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MPLBACKEND": "Agg",  # that of a notebook, which may start the server, is not there
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    return work, environment


def server_command(app: Path, studies: str, host: str, port: int, ssl: Sequence[Path] | None = None) -> list[str]:
    """Return the command that runs the server.

    Args:
        app: work folder.
        studies: folder, datalist or address.
        host: to listen on.
        port: the same.
        ssl: key and certificate.
    """
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", studies]
    command += ["--host", host, "--port", str(port), "--uvicorn_app", "monai_rrr.label.server:app"]
    if ssl is not None:
        command += ["--ssl_keyfile", str(ssl[0]), "--ssl_certfile", str(ssl[1])]
    return command
