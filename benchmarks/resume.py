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


"""Does a training that is stopped and resumed end with the same bits, and does a checkpoint survive being killed?

    python benchmarks/resume.py

writes ``benchmarks/results/resume.json`` and ``.md``. The training is that of ``tests/reliability/tiny_training.py``:
the bundle's network, step and objective with batch normalization, dropout, random transforms, warps, a schedule, an
averaged network and early stopping.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import logging
import os
import platform
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import monai
import torch

import monai_rrr

RESULTS = Path(__file__).parent / "results"
SCRIPT = Path(__file__).parents[1] / "tests" / "reliability" / "tiny_training.py"
KILLS, SEED = 25, 0


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_training", SCRIPT)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_training"] = module
    spec.loader.exec_module(module)
    return module


def stopped(tiny: ModuleType, folder: Path, iteration: int, whole: Any, options: Mapping[str, Any]) -> bool:
    """Stop by SIGTERM in an iteration, resume in a new trainer, compare all states with an uninterrupted run."""
    first = tiny.Training(folder, **options)
    at = tiny.Events.ITERATION_STARTED(once=iteration)
    first.trainer.add_event_handler(at, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    try:
        first.run()
    except SystemExit:
        second = tiny.Training(folder, resume=True, **options).run()
        return bool(second.digest() == whole.digest() and first.seen + second.seen == whole.seen)
    raise RuntimeError("the training was not stopped")


def measure(kills: int) -> dict[str, Any]:
    tiny = load()
    names = ("workers", "shuffle", "augment")
    rows: list[dict[str, Any]] = []
    for values in itertools.product((0, 2), (False, True), (False, True)):
        options = dict(zip(names, values, strict=True))
        whole = tiny.Training(**options).run()
        with tempfile.TemporaryDirectory() as name:
            row = {**options, "epoch border": stopped(tiny, Path(name, "a"), 10, whole, options)}
            row["middle of an epoch"] = stopped(tiny, Path(name, "b"), 7, whole, options)
        rows.append(row)
    chance, unreadable, different, resumed = random.Random(SEED), 0, 0, 0
    reference = tiny.Training().run().digest()
    for trial in range(kills):
        with tempfile.TemporaryDirectory() as name:
            tiny.Forked(Path(name), every=1).kill(chance.randint(2, 18), later=chance.uniform(0, 0.1))
            try:
                unreadable += not tiny.intact(Path(name))
            except monai_rrr.errors.CheckpointError:
                unreadable += 1
            if trial % 5 == 0:
                resumed += 1
                different += tiny.Training(name, every=1, resume=True).run().digest() != reference
    kill = {"trials": kills, "unreadable": unreadable, "resumed": resumed, "different": different}
    return {"configurations": rows, "kills": kill}


def as_markdown(result: Mapping[str, Any]) -> str:
    columns = list(result["configurations"][0])
    rows = [
        [str(row[name]) if name == "workers" else "yes" if row[name] else "no" for name in columns]
        for row in result["configurations"]
    ]
    kills = result["kills"]
    lines = [
        "# Resume: are all states equal to those of an uninterrupted training, bit for bit?",
        "",
        f"{result['hardware']}, {result['date']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f". Command: `{result['command']}`. Four epochs of five iterations; compared is the SHA-256 over network, "
        "optimizer, schedule, averaged network and early stopping, and the order of the samples. Stopped by SIGTERM, "
        "resumed by a new trainer.",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "SIGKILL at random times, a checkpoint after every iteration: "
        f"{kills['trials']} trials, {kills['unreadable']} without an intact checkpoint or with a damaged one; "
        f"{kills['resumed']} of them resumed, {kills['different']} with another result than uninterrupted.",
        "",
        f"Bar (8 of 8 equal, 0 unreadable, 0 different): {'met' if result['bar_met'] else 'missed'}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=KILLS, help="trials with SIGKILL")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    result = measure(arguments.kills)
    kills = result["kills"]
    ours = all(row["epoch border"] and row["middle of an epoch"] for row in result["configurations"])
    result = {
        "command": f"python benchmarks/resume.py --kills {arguments.kills}",
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"monai-rrr": monai_rrr.__version__, "torch": torch.__version__, "monai": monai.__version__},
        "bar_met": ours and kills["unreadable"] == 0 and kills["different"] == 0,
        **result,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "resume.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = as_markdown(result)
    (arguments.output / "resume.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
