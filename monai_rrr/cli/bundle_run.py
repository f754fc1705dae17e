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


"""Run a bundle as ``python -m monai.bundle run`` in a process of its own, with a bar that is read off its files.

It goes through the gate first: ``--bundle`` may name the folder of somebody else.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import monai_rrr
from monai_rrr.errors import ConfigError

from .console import progress

__all__ = [
    "EVALUATE",
    "TRAIN",
    "config_files",
    "evaluated",
    "find_bundle",
    "plain_value",
    "run_bundle",
    "trained",
]

TRAIN = ("train.yaml",)
EVALUATE = ("train.yaml", "evaluate.yaml")

_POLL = 0.5


class BundleRunError(RuntimeError):
    """A bundle's process ended with an error; its log says why."""


def find_bundle(name: str) -> Path:
    """Return the folder of a bundle, given as a path or as the name of one in the repository.

    Raises:
        ConfigError: ``bundle-missing``.
    """
    repository = Path(monai_rrr.__file__).resolve().parents[1]
    with suppress(ValueError, OSError):  # such as a name with a NUL, or one that is too long
        for folder in (Path(name), Path("bundles") / name, repository / "bundles" / name):
            if (folder / "configs" / "metadata.json").is_file():
                return folder.resolve()
    hint = "bundles come with the source: clone the repository, or give the path of a bundle's folder"
    raise ConfigError("bundle-missing", f"expected a bundle's folder, got {name!r}", hint=hint)


def config_files(bundle: Path, names: Sequence[str]) -> list[Path]:
    """Return configuration files given by name, such as ``train``, in the bundle's ``configs``, or by path.

    Raises:
        ConfigError: ``config-missing``.
    """
    files = []
    for name in names:
        endings = ("", ".yaml", ".yml", ".json")
        choice = [bundle / "configs" / f"{name}{ending}" for ending in endings] + [Path(name)]
        try:
            files.append(next(path for path in choice if path.is_file()))
        except (StopIteration, ValueError, OSError):  # such as a name with a NUL, or one that is too long
            present = sorted(path.stem for path in (bundle / "configs").glob("*.*") if path.stem != "metadata")
            message = f"expected a configuration out of {', '.join(present)}, got {name!r}"
            raise ConfigError("config-missing", message, path=bundle / "configs") from None
    return files


def plain_value(text: str) -> Any:
    """Read a value of the command line as ``monai.bundle`` does, which uses ``fire``: Python literals, else text."""
    from fire.parser import DefaultParseValue

    return DefaultParseValue(text)


def trained(folder: Path) -> tuple[int, int]:
    """Return (steps done, steps in all) of a training that writes into `folder`; (0, 0) before it has begun."""
    try:
        record = json.loads((folder / "run.json").read_text("utf-8"))
        total = int(record["epochs"]) * int(record["iterations_per_epoch"])
        with (folder / "training.csv").open(newline="", encoding="utf-8") as file:
            steps = [int(row["step"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
    return (max(steps, default=0), total)


def evaluated(folder: Path, cases: int) -> tuple[int, int]:
    """Return (cases written, cases in all) of an evaluation that writes into `folder`."""
    return len(list(folder.glob("cases/*/*_pred.nii.gz"))), cases


def run_bundle(
    what: str,
    bundle: Path,
    configs: Sequence[str],
    options: dict[str, object],
    log: Path,
    state: Callable[[], tuple[int, int]],
) -> None:
    """Run a bundle's workflow and show how far it is.

    Args:
        what: words beside the bar.
        bundle: folder of the bundle.
        configs: files in its ``configs``; later ones are overlays.
        options: keys of the configuration to override.
        log: file that receives everything the process prints.
        state: called twice a second: (done, total), total 0 while unknown.

    Raises:
        ConfigError: When the gate refuses the bundle.
        RuntimeError: With the end of the log, when the process fails.
    """
    from monai_rrr.bundle import end_of_log, pass_gate, start_bundle

    plain = {key: plain_value(str(value)) for key, value in options.items()}
    pass_gate(bundle, config_files(bundle, configs), plain, base=bundle)
    files = [f"configs/{name}" for name in configs]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, progress(what) as step:
        process = start_bundle(bundle, files, options, file)
        try:
            while process.poll() is None:
                time.sleep(_POLL)
                done, total = state()
                if total:
                    step(done, total)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)
    if process.returncode:
        raise BundleRunError(f"{what} ended with code {process.returncode}; {end_of_log(log)}")
