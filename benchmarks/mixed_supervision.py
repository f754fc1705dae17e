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

r"""Mixed supervision: tags, masks on some cases, or both, and what each family of terms adds.

    monai-rrr phantom work/train --cases 40 --seed 41 --spacing 4 --controls 0.25
    monai-rrr phantom work/test --cases 30 --seed 42 --spacing 4 --controls 0.2
    monai-rrr annotators work/train work/team --convention brats2018 --held-out 0
    monai-rrr tags work/train work/tags.csv --convention brats2018
    python benchmarks/mixed_supervision.py run --team work/team --tags work/tags.csv --test work/test --out work/runs
    python benchmarks/mixed_supervision.py table --out work/runs --result benchmarks/results/mixed_supervision.json

Every run is the bundle ``brats_mri_right_reasons`` itself, ``train.yaml`` with its overlays, in the same number of
steps; the case is scored by what its ``inference.yaml`` says, against the truth, which no training has seen. Every
finished run is one file, which is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mixed_arms import ARMS
from mixed_run import run, run_missing
from mixed_table import MISSING, write_table
from run_file import make_run

SMALL: dict[str, Any] = {
    **{"spacing": 6.0, "roi_size": [24, 32, 8], "channels": [8]},
    **{"decoder": [8, 16, 32], "features": 8, "width": 16},
}
COMPARED = ("tags", "mixed", "masks", "all")


def configs_of(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and settings of runs in the order of what they tell: the comparison, modalities missing, the others."""
    shared = {"steps": arguments.steps, "set": {**SMALL, **json.loads(arguments.set)}}
    compared, others = ([arm for arm in arguments.arms if (arm in COMPARED) == first] for first in (True, False))
    for part in (compared, [MISSING] if "mixed" in compared else [], others):
        for seed in arguments.seeds:
            for arm in part:
                yield f"{arm}_seed{seed}", {"arm": "mixed" if arm == MISSING else arm, "seed": seed, **shared}


def run_all(arguments: argparse.Namespace) -> None:
    """Make all runs that are not there."""
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = time.time() + arguments.seconds if arguments.seconds else float("inf")
    data = {"team": arguments.team.resolve(), "tags": arguments.tags.resolve(), "test": arguments.test.resolve()}
    for name, config in configs_of(arguments):
        make = run_missing if name.startswith(MISSING) else run
        target = arguments.out / f"{name}.json"
        print(make_run(target, end, partial(make, config, data, arguments.out.resolve() / "work")), flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    go = commands.add_parser("run", help="train and score")
    go.add_argument("--team", type=Path, required=True, help="what simulated annotators drew of the training cases")
    go.add_argument("--tags", type=Path, required=True, help="table of their tags")
    go.add_argument("--test", type=Path, required=True, help="cases to score, with the truth")
    go.add_argument("--out", type=Path, required=True)
    go.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    go.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    go.add_argument("--steps", type=int, default=720)
    go.add_argument("--set", default="{}", help="further entries of the bundle's configuration, as JSON")
    go.add_argument("--seconds", type=float, default=0.0, help="start no run after so many seconds; 0: no limit")
    table = commands.add_parser("table", help="summarize")
    table.add_argument("--out", type=Path, required=True)
    table.add_argument("--result", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Run a command."""
    arguments = parse()
    if arguments.command == "run":
        run_all(arguments)
    else:
        write_table(arguments.out, arguments.result)


if __name__ == "__main__":
    main()
