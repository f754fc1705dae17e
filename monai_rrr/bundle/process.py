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

"""The workflow of a bundle in a process of its own, after the gate let it pass."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

__all__ = ["end_of_log", "start_bundle"]

LAST_LINES = 30


def start_bundle(
    folder: Path, configs: Sequence[str | Path], options: Mapping[str, Any], output: TextIO
) -> subprocess.Popen[bytes]:
    """Start ``python -m monai.bundle run`` in the folder of a bundle; no module is taken from that folder.

    Args:
        folder: of the bundle; :func:`~monai_rrr.bundle.pass_gate` is the caller's business.
        configs: configuration files in the order in which MONAI merges them.
        options: keys of the configuration to override.
        output: receives everything the process prints.
    """
    files = str([str(path) for path in configs])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, "--bundle_root", "."]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def end_of_log(log: Path) -> str:
    """Return the last lines of a log, with words that say so."""
    last = log.read_text("utf-8", errors="replace").splitlines()[-LAST_LINES:]
    return f"the end of {log}:\n" + "\n".join(last)
