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

r"""Annotators with known habits: a network with kernels per annotator against nine others, controls, sparse masks.

    monai-rrr phantom work/phantom --cases 48 --seed 6 --spacing 2 --controls 0
    python benchmarks/annotator_tendency.py prepare work/phantom --levels L1 L2 L3 L4 L5 --out work
    python benchmarks/annotator_tendency.py run --data work --out work/runs --jobs 4
    python benchmarks/annotator_tendency.py cost --size 32 --result benchmarks/results/annotator_cost.json
    python benchmarks/annotator_tendency.py table --out work/runs work/real \
        --cost benchmarks/results/annotator_cost.json --result benchmarks/results/annotator_tendency.json

``prepare`` alone needs images; what it writes is all that ``run`` reads. ``run`` first chooses a learning rate for each
arm on a quarter of the training cases, by what the arm is for: the consensus of those that have no names, the mean of
all annotators' own versions of those that have. Then it works through the comparison, the controls and the rest, the
most telling runs first. Every finished run is one file, which is not made again. Real cases:

    python benchmarks/annotator_tendency.py prepare BRATS --spacing 3 --size 28 --held-out 0 --name real --out work
    python benchmarks/annotator_tendency.py run --data work --groups real --rates work/runs --out work/real \
        --set '{"start_steps": 800, "steps": 240}'
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from annotator_arms import ARMS
from annotator_cost import write_cost
from annotator_data import Cohort, prepare
from annotator_table import write_table
from annotator_train import DEFAULTS, run
from run_file import make_run

RATES = (3e-3, 1e-2)
TUNING = {"tuning": True, "start_steps": DEFAULTS["start_steps"] // 2, "steps": DEFAULTS["steps"] // 2}
SAME_RATE = {"staple": "vote", "em": "vote", "separate": "vote"}
"""Arms that are the same network with the same loss on other masks."""
NAMED = ("ours", "heads", "cm_corrected")
CONTROLS: dict[str, dict[str, Any]] = {
    "permuted": {"control": "permuted"},
    "duplicate": {"control": "duplicate"},
    "blank": {"control": "blank", "estimate": "em"},
    "shuffled": {"shuffled": True},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "random_kernels": {"start_kernels": False},
    "gamma_lr1": {"gamma_lr": 1.0},
    "em": {"estimate": "em"},
    "no_tie": {"without": ["tie"]},
    "no_sdf": {"without": ["signed_distance"]},
    "no_center": {"centered": False},
    "slots1": {"slots": 1},
    "slots8": {"slots": 8},
    "stride1": {"stride": 1},
    "kernel3": {"kernel_size": 3},
    "no_push": {"bank": "no_push"},
    "all_voxels": {"bank": "all_voxels"},
    "no_average": {"momentum": (0.0, 0.0)},
    "kernel_is_prototype": {"kernel_is_prototype": True, "without": ["tie"]},
    "calibrated": {"calibrated": 8},
    "1of6_em": {"observed": 1, "estimate": "em"},
    "longer": {"steps": 3 * DEFAULTS["steps"]},
}
REAL = ("ours", "vote", "heads")


def comparison(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Configurations in the order of what they tell."""
    groups, seeds = arguments.groups, arguments.seeds
    if "L1" in groups:
        yield from ({"arm": arm, "level": "L1", "seed": seed} for seed in seeds for arm in arguments.arms)
    if "controls" in groups:
        for seed in seeds:
            for name, options in CONTROLS.items():
                yield {"arm": "ours", "level": "L1", "seed": seed, "variant": name, **options}
    if "sparse" in groups:
        for seed in seeds:
            for observed in (1, 3):
                for arm in NAMED:
                    yield {"arm": arm, "level": "L1", "seed": seed, "variant": f"{observed}of6", "observed": observed}
    if "newcomer" in groups:
        for seed in seeds:
            for arm in ("ours", "heads"):
                yield {"arm": arm, "level": "L5", "seed": seed, "newcomer": [3, 5, 10]}
    if "levels" in groups:
        for seed in seeds:
            for level in ("L3", "L2", "L4"):
                for arm in ("ours", "heads", "vote"):
                    yield {"arm": arm, "level": level, "seed": seed}
    if "ablations" in groups:
        for seed in seeds:
            for name in arguments.ablations:
                yield {"arm": "ours", "level": "L1", "seed": seed, "variant": name, **ABLATIONS[name]}
    if "real" in groups:
        for seed in seeds:
            for arm in REAL:
                for fold in range(arguments.folds):
                    yield {"arm": arm, "level": "real", "seed": seed, "fold": fold}


def name_of(config: dict[str, Any]) -> str:
    """File name of a run."""
    parts = [config["level"], config["arm"], config.get("variant", ""), f"seed{config['seed']}"]
    parts += [f"lr{config['lr']:g}"] if config.get("tuning") else []
    parts += [f"fold{config['fold']}"] if "fold" in config else []
    return "_".join(part for part in parts if part)


def start_of(config: dict[str, Any]) -> str:
    """File of the network at which all arms begin that see the same masks with the same seed."""
    control = config.get("control") if config.get("control") in ("blank", "duplicate") else None
    seen = [config["level"], config.get("fold"), config.get("observed"), control, config.get("tuning")]
    seen += ["newcomer" if "newcomer" in config else None, config.get("start_steps"), config["seed"]]
    return f"start_{'_'.join(str(value) for value in seen)}.pt"


def parts(config: dict[str, Any], arguments: argparse.Namespace) -> tuple[Cohort, Cohort, Cohort | None]:
    """Cases to train on, cases to score, and those of an annotator who comes later."""
    whole = Cohort.load(arguments.data / f"{config['level']}.npz")
    training = whole.of("training")
    if config.get("tuning"):
        everyone = range(len(training))
        return training.part([i for i in everyone if i % 4]), training.part([i for i in everyone if i % 4 == 0]), None
    if "fold" in config:
        held = [i for i in range(len(whole)) if i % arguments.folds == config["fold"]]
        return whole.part([i for i in range(len(whole)) if i not in held]), whole.part(held), None
    if "newcomer" not in config:
        return training, whole.of("test"), None
    adaptation = whole.of("adaptation")
    new = int(adaptation.annotated[0].int().argmax())
    order = [r for r in range(len(whole.annotators)) if r != new]
    few = adaptation.team([*order, new])
    return training.team(order), whole.of("test").team([*order, new]), few


def work(task: tuple[dict[str, Any], argparse.Namespace, float]) -> str:
    """Make one run, unless it is there or time is up; a failure is printed and leaves no file."""
    config, arguments, end = task

    def make() -> dict[str, Any]:
        torch.set_num_threads(arguments.threads)
        training, test, newcomer = parts(config, arguments)
        return run(training, test, {**config, "start": str(arguments.out / start_of(config))}, newcomer)

    return make_run(arguments.out / f"{name_of(config)}.json", end, make)


def work_all(configs: list[dict[str, Any]], arguments: argparse.Namespace, end: float) -> None:
    """Make all runs and say which are done."""
    tasks = [(config, arguments, end) for config in configs]
    with mp.get_context("spawn").Pool(arguments.jobs) if arguments.jobs > 1 else nullcontext() as pool:
        for count, line in enumerate(map(work, tasks) if pool is None else pool.imap(work, tasks), start=1):
            print(f"[{count}/{len(tasks)}] {line}", flush=True)


def target_of(record: dict[str, Any]) -> float:
    """What an arm is for: own versions where there are names, else the consensus; Dice, mean of regions."""
    named = record["config"]["arm"] not in ("vote", "staple", "em", "ssn")
    if record["config"]["arm"] == "ssn":
        return -float(np.mean(record["ged"]))
    return float(np.nanmean(np.array(record["dice" if named else "consensus"], float)))


def rates_of(out: Path, arms: list[str]) -> dict[str, Any]:
    """Learning rate of each arm that did best on the cases held out for it, and the scores of all."""
    rates: dict[str, Any] = {}
    for arm in arms:
        scores: dict[str, float] = {}
        for file in sorted(out.glob(f"L1_{SAME_RATE.get(arm, arm)}_seed100_lr*.json")):
            record = json.loads(file.read_text(encoding="utf-8"))
            scores[f"{record['config']['lr']:g}"] = round(target_of(record), 4)
        best = max(scores, key=lambda rate: scores[rate]) if scores else f"{DEFAULTS['lr']:g}"
        rates[arm] = {"rate": float(best), "scores": scores}
    return rates


def run_all(arguments: argparse.Namespace) -> None:
    """Tune and work through the groups."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = time.time() + arguments.seconds if arguments.seconds else float("inf")
    fixed = {"newcomer_lr": 1e-2, "newcomer_steps": 100} | json.loads(arguments.set)
    if arguments.rates is None:
        tuning = [
            {"arm": arm, "level": "L1", "seed": 100, "lr": rate, **TUNING, **fixed}
            for arm in arguments.arms
            for rate in RATES
            if arm not in SAME_RATE
        ]
        work_all(tuning, arguments, end)
        rates = rates_of(arguments.out, arguments.arms)
    else:
        rates = json.loads((arguments.rates / "rates.json").read_text(encoding="utf-8"))
    (arguments.out / "rates.json").write_text(json.dumps(rates, indent=1), encoding="utf-8")
    print({arm: found["rate"] for arm, found in rates.items()}, flush=True)
    configs = [{**fixed, **config, "lr": rates[config["arm"]]["rate"]} for config in comparison(arguments)]
    work_all(configs, arguments, end)


def prepare_all(arguments: argparse.Namespace) -> None:
    """Write one cohort per level."""
    from monai_rrr.data import TeamSettings

    for level in arguments.levels:
        settings = TeamSettings(level, expert=not arguments.no_expert, held_out=arguments.held_out, seed=arguments.seed)
        output = arguments.out / f"{arguments.name or level}.npz"
        prepare(arguments.folder, arguments.convention, settings, arguments.spacing, arguments.size, output)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("prepare", help="draw the masks and write cubes")
    make.add_argument("folder", type=Path)
    make.add_argument("--convention", default="brats2018")
    make.add_argument("--levels", nargs="+", default=["L1"])
    make.add_argument("--no-expert", action="store_true", help="a team without an annotator who draws the truth")
    make.add_argument("--held-out", type=float, default=0.33)
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--spacing", type=float, default=2.5)
    make.add_argument("--size", type=int, default=24, help="voxels along an edge of the cube")
    make.add_argument("--name", default="", help="of the file, in place of the level")
    make.add_argument("--out", type=Path, required=True)
    go = commands.add_parser("run", help="train and score")
    go.add_argument("--data", type=Path, required=True, help="folder that prepare wrote to")
    go.add_argument("--out", type=Path, required=True)
    go.add_argument("--groups", nargs="+", default=["L1", "controls", "sparse", "newcomer", "levels", "ablations"])
    go.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    go.add_argument("--ablations", nargs="*", choices=ABLATIONS, default=list(ABLATIONS))
    go.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    go.add_argument("--folds", type=int, default=4, help="of the real cases")
    go.add_argument("--rates", type=Path, help="folder of a run that chose the learning rates")
    go.add_argument("--set", default="{}", help="further settings of all runs, as JSON")
    go.add_argument("--jobs", type=int, default=1)
    go.add_argument("--threads", type=int, default=1)
    go.add_argument("--seconds", type=float, default=0.0, help="start no run after so many seconds; 0: no limit")
    cost = commands.add_parser("cost", help="parameters and time of a step over those of one network")
    cost.add_argument("--result", type=Path, required=True)
    cost.add_argument("--size", type=int, default=48)
    cost.add_argument("--steps", type=int, default=5)
    table = commands.add_parser("table", help="summarize")
    table.add_argument("--out", type=Path, nargs="+", required=True)
    table.add_argument("--result", type=Path, required=True)
    table.add_argument("--cost", type=Path, help="what the command cost wrote")
    return parser.parse_args()


def main() -> None:
    """Run a command."""
    arguments = parse()
    if arguments.command == "prepare":
        prepare_all(arguments)
    elif arguments.command == "run":
        run_all(arguments)
    elif arguments.command == "cost":
        write_cost(arguments.result, arguments.size, arguments.steps)
    else:
        write_table(arguments.out, arguments.result, arguments.cost)


if __name__ == "__main__":
    main()
