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


"""What verifying, hashing, guarding and saving cost, as a share of the demo's training.

    python benchmarks/reliability_cost.py

trains the bundle of the demo on the demo's synthetic cohort for some epochs, and writes
``benchmarks/results/reliability_cost.json`` and ``.md``. Seconds of CPU time of the process, one thread; what happens
once per training (verifying, hashing the files for the cache) counts once in the demo's number of epochs. A wrapper
around each part takes the time, so that parts inside of others are not counted twice.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from pydoc import locate
from typing import Any
from unittest.mock import patch

import monai
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

import monai_rrr
import monai_rrr.engines
import monai_rrr.handlers
from monai_rrr.data import derive_tags, generate_cohort, load_datalist, write_tags

RESULTS = Path(__file__).parent / "results"
BUNDLE = Path(__file__).parents[1] / "bundles" / "brats_mri_equivariant_cam"
BAR = 0.02
PARTS = {
    "verify all files": ("once", "monai_rrr.data.verify_cases"),
    "hash files for the cache": ("once", "monai_rrr.data.cache.sha256"),
    "checkpoints": ("epoch", "monai_rrr.handlers.checkpoint.TrainingCheckpoint.save"),
    "random states, order": ("epoch", "monai_rrr.engines.training.seed_all"),
    "random states, samples": ("epoch", "monai_rrr.data.epoch_loader.seed_all"),
    "random states, transforms": ("epoch", "monai_rrr.data.epoch_loader.set_rnd"),
    "seeds of samples": ("epoch", "monai_rrr.data.epoch_loader.derive_seed"),
    "guard, loss": ("epoch", "monai_rrr.engines.update._finite_everywhere"),
    "guard, gradient": ("epoch", "torch.nn.utils.get_total_norm"),
    "table of terms": ("epoch", "monai_rrr.handlers.terms.TermLogger._write"),
}


class Clock:
    """CPU seconds by part, and of each epoch."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.open = False

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Take the time of a function, except inside of another part."""

        def timed(*arguments: Any, **options: Any) -> Any:
            if self.open:
                return function(*arguments, **options)
            self.open, begin = True, time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.open = False
                self.seconds[name] += time.process_time() - begin

        return timed


@contextmanager
def clocked(clock: Clock) -> Iterator[None]:
    patches = []
    for name, (_, target) in PARTS.items():
        place, _, attribute = target.rpartition(".")
        # engines.run is a module and a function of it; a class is no module.
        owner: Any = sys.modules.get(place) or locate(place)
        patches.append(patch.object(owner, attribute, clock.around(name, getattr(owner, attribute))))
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def measure(cases: int, epochs: int) -> dict[str, Any]:
    clock, ends = Clock(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_cohort(folder / "data", cases, 0)
        write_tags(folder / "tags.csv", derive_tags(load_datalist(folder / "data", with_labels=True), "brats2018"))
        parser = ConfigParser()
        parser.read_config(str(BUNDLE / "configs" / "train.yaml"))
        demo_epochs = int(parser.get("epochs"))
        parser.update({"bundle_root": str(BUNDLE), "dataset_dir": str(folder / "data"), "device": "cpu"})
        parser.update({"tags_file": str(folder / "tags.csv"), "output_dir": name, "ckpt_dir": name, "epochs": epochs})
        with clocked(clock):
            parser.get_parsed_content("initialize")
            trainer = parser.get_parsed_content("train#trainer")
            trainer.add_event_handler(
                Events.EPOCH_STARTED, lambda _: ends.append((time.process_time(), {**clock.seconds}))
            )
            parser.get_parsed_content("run")
        buffers = list(parser.get_parsed_content("network_def").buffers())
        parser.get_parsed_content("finalize")
        files = sum(len(case["modalities"]) for case in load_datalist(folder / "data", with_labels=False))
    # From the second epoch on, when the cache is full, to the beginning of the last one.
    (begin, before), (last, after) = ends[1], ends[-1]
    count = len(ends) - 2
    epoch = (last - begin) / count
    names = [name for name, (kind, _) in PARTS.items() if kind == "epoch"]
    per_epoch = {name: (after.get(name, 0.0) - before.get(name, 0.0)) / count for name in names}
    per_epoch["guard, copies of buffers"] = trainer.state.epoch_length * copies(buffers)
    once = {n: clock.seconds[n] for n, (kind, _) in PARTS.items() if kind == "once"}
    training = epoch * demo_epochs
    return {
        "cases": cases,
        "files": files,
        "epochs_measured": count,
        "epochs_of_the_demo": demo_epochs,
        "iterations_per_epoch": trainer.state.epoch_length,
        "seconds_per_epoch": epoch,
        "once": once,
        "per_epoch": per_epoch,
        "share": {
            **{name: seconds / training for name, seconds in once.items()},
            **{name: seconds / epoch for name, seconds in per_epoch.items()},
        },
    }


def copies(buffers: list[torch.Tensor]) -> float:
    """CPU seconds to copy the buffers of a network before a step."""
    times = []
    for _ in range(50):
        begin = time.process_time()
        [(buffer, buffer.clone()) for buffer in buffers]
        times.append(time.process_time() - begin)
    return statistics.median(times)


def as_markdown(result: Mapping[str, Any]) -> str:
    seconds = {**result["once"], **result["per_epoch"]}
    lines = [
        "# Cost of what makes a training reliable",
        "",
        f"Demo of {result['cases']} synthetic cases, {result['iterations_per_epoch']} iterations per epoch of "
        f"{result['seconds_per_epoch']:.2f} s of CPU time, {result['epochs_measured']} epochs measured, "
        f"{result['epochs_of_the_demo']} in the demo; {result['hardware']}, {result['date']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f". Command: `{result['command']}`. CPU seconds of one thread.",
        "",
        "| part | when | CPU seconds | share of training |",
        "|---|---|---|---|",
    ]
    for name, share in result["share"].items():
        when = "once" if name in result["once"] else "each epoch"
        lines.append(f"| {name} | {when} | {seconds[name]:.4f} | {100 * share:.3f} % |")
    lines += [
        f"| **all** | | | **{100 * result['total']:.2f} %** |",
        "",
        f"Bar (under {100 * BAR:.0f} % of training time): {'met' if result['bar_met'] else 'missed'}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=36, help="as in the demo")
    parser.add_argument("--epochs", type=int, default=5, help="epochs to train; the first one fills the cache")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    result = measure(arguments.cases, arguments.epochs)
    total = sum(result["share"].values())
    result = {
        "command": f"python benchmarks/reliability_cost.py --cases {arguments.cases} --epochs {arguments.epochs}",
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"monai-rrr": monai_rrr.__version__, "torch": torch.__version__, "monai": monai.__version__},
        "total": total,
        "bar": BAR,
        "bar_met": total < BAR,
        **result,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "reliability_cost.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = as_markdown(result)
    (arguments.output / "reliability_cost.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
