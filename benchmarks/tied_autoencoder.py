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

r"""Tags on all cases, masks on few: the tied autoencoder against U-Nets, a CAM head and an untied copy.

    monai-rrr phantom train --cases 48 --seed 11 --spacing 4 --controls 0.25
    monai-rrr phantom test --cases 60 --seed 12 --spacing 4 --controls 0.25
    python benchmarks/tied_autoencoder.py prepare train --spacing 4 --output work/train.npz
    python benchmarks/tied_autoencoder.py prepare test --spacing 4 --output work/test.npz
    python benchmarks/tied_autoencoder.py run --train work/train.npz --test work/test.npz --out work/runs \
        --device cuda --jobs 12
    python benchmarks/tied_autoencoder.py table --out work/runs --result benchmarks/results/tied_autoencoder.json

``prepare`` alone needs the images; what it writes is all that ``run`` reads. ``run`` first chooses a learning rate for
each arm on a quarter of the training cases, then works through the comparison, the most telling runs first, and then
through the ablations. Every finished run is one file, which is not made again. ``--folds`` instead of ``--test`` cross-
validates within one cohort; ``--rates`` takes the learning rates that another ``run`` chose; ``--variant`` runs all
arms, not only the tied one, with one of the ablations, such as ``fresh_zscore``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from run_file import make_run
from tied_arms import ARMS
from tied_data import Cohort, prepare
from tied_table import write_table
from tied_train import DEFAULTS, run
from torch.nn.functional import binary_cross_entropy_with_logits

RATES = (1e-3, 3e-3, 1e-2)
TUNING = {"share": 0.2, "seed": 100}
ABLATIONS: dict[str, dict[str, Any]] = {
    "rule_gamma": {"rule": "gamma"},
    "rule_eps": {"rule": "eps"},
    "first_flat": {"first": "flat"},
    "first_w2": {"first": "w2"},
    "scale_fixed": {"normalize": False},
    "norm_instance": {"norm": "instance"},
    "norm_group": {"norm": "group"},
    "proportional": {"sampling": "proportional"},
    "zscore": {"input": "zscore"},
    "fresh": {"sampling": "mixed"},
    "fresh_zscore": {"sampling": "mixed", "input": "zscore"},
}
_COHORTS: dict[str, Cohort] = {}


def comparison(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Configurations in the order of what they tell."""
    common = variant_of(arguments)
    for seed in arguments.seeds:
        if "classifier" in arguments.arms:
            yield {"arm": "classifier", "share": 0.0, "seed": seed, **common}
        for share in arguments.shares:
            for arm in arguments.arms:
                if arm != "classifier":
                    yield {"arm": arm, "share": share, "seed": seed, **common}
    for seed in arguments.seeds:
        for name in arguments.ablations if "tied" in arguments.arms else ():
            yield {"arm": "tied", "share": arguments.ablation_share, "seed": seed, "variant": name, **ABLATIONS[name]}


def variant_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all arms do differently, and its name."""
    return {"variant": arguments.variant, **ABLATIONS[arguments.variant]} if arguments.variant else {}


def name_of(config: dict[str, Any]) -> str:
    """File name of a run."""
    parts = [config["arm"], config.get("variant", ""), f"share{config['share']:g}", f"seed{config['seed']}"]
    parts += [f"lr{config['lr']:g}"] if config.get("tuning") else []
    parts += [f"fold{config['fold']}"] if "fold" in config else []
    return "_".join(part for part in parts if part)


def cohort(path: str, device: str) -> Cohort:
    """Read a cohort once per process."""
    if path not in _COHORTS:
        _COHORTS[path] = Cohort.load(Path(path), torch.device(device))
    return _COHORTS[path]


def parts(config: dict[str, Any], arguments: argparse.Namespace) -> tuple[Cohort, Cohort]:
    """Cases to train on and cases to score."""
    whole = cohort(str(arguments.train), arguments.device)
    everyone = range(len(whole))
    if config.get("tuning"):
        return whole.part([i for i in everyone if i % 4]), whole.part([i for i in everyone if i % 4 == 0])
    if "fold" in config:
        held = [i for i in everyone if i % arguments.folds == config["fold"]]
        return whole.part([i for i in everyone if i not in held]), whole.part(held)
    return whole, cohort(str(arguments.test), arguments.device)


def work(task: tuple[dict[str, Any], argparse.Namespace, float]) -> str:
    """Make one run, unless it is there or time is up; a failure is printed and leaves no file."""
    config, arguments, end = task

    def make() -> dict[str, Any]:
        torch.set_num_threads(arguments.threads)
        device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu"
        return {**run(*parts(config, arguments), config), "device": device}

    return make_run(arguments.out / f"{name_of(config)}.json", end, make)


def work_all(pool: Any, configs: Iterable[dict[str, Any]], arguments: argparse.Namespace, end: float) -> None:
    """Make all runs and say which are done."""
    tasks = [(config, arguments, end) for config in configs]
    done = map(work, tasks) if pool is None else pool.imap_unordered(work, tasks)
    for count, line in enumerate(done, start=1):
        print(f"[{count}/{len(tasks)}] {line}", flush=True)


def rate_of(out: Path, arm: str, variant: str) -> tuple[float, dict[str, float]]:
    """Learning rate of an arm that did best on the cases held out for it, and the scores of all.

    Arms that segment are ranked by Dice of WT, a classifier by minus the cross-entropy of its tags, which is defined
    where all cases have one kind of tag and AUROC is not.
    """
    scores = {}
    stem = name_of({"arm": arm, "variant": variant, **TUNING})
    for file in sorted(out.glob(f"{stem}_lr*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if "dice" in record:
            score = float(np.mean([row[0] for row in record["dice"] if row[0] is not None]))
        else:
            logits, tags = (torch.tensor(record[name]) for name in ("logits", "tags"))
            score = -float(binary_cross_entropy_with_logits(logits, tags))
        scores[f"{record['config']['lr']:g}"] = score
    best = max(scores, key=lambda rate: scores[rate]) if scores else f"{DEFAULTS['lr']:g}"
    return float(best), {rate: round(score, 4) for rate, score in scores.items()}


def tuned(arguments: argparse.Namespace, fixed: dict[str, Any], pool: Any, end: float) -> dict[str, float]:
    """Choose a learning rate for each arm, and note what was chosen beside earlier choices."""
    common = {**TUNING, "tuning": True, **fixed, **variant_of(arguments)}
    tuning = ({"arm": arm, "lr": rate, **common} for rate in RATES for arm in arguments.arms)
    work_all(pool, tuning, arguments, end)
    file = arguments.out / "rates.json"
    noted = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rates = {}
    for arm in arguments.arms:
        rates[arm], scores = rate_of(arguments.out, arm, arguments.variant)
        noted[f"{arm} {arguments.variant}".strip()] = {"rate": rates[arm], "scores": scores}
    file.write_text(json.dumps(noted, indent=1), encoding="utf-8")
    return rates


def run_all(arguments: argparse.Namespace) -> None:
    """Tune, compare, ablate."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = time.time() + arguments.seconds if arguments.seconds else float("inf")
    fixed = {"steps": arguments.steps, "filters": arguments.filters, "batch_size": arguments.batch_size}
    fixed |= json.loads(arguments.set)
    pool = mp.get_context("spawn").Pool(arguments.jobs) if arguments.jobs > 1 else None
    if arguments.rates is None:
        rates = tuned(arguments, fixed, pool, end)
    else:
        known = json.loads((arguments.rates / "rates.json").read_text(encoding="utf-8"))
        if not (arguments.out / "rates.json").exists():
            (arguments.out / "rates.json").write_text(json.dumps(known, indent=1), encoding="utf-8")
        named = {arm: f"{arm} {arguments.variant}".strip() for arm in arguments.arms}
        rates = {arm: known.get(name, known[arm])["rate"] for arm, name in named.items()}
    print(rates, flush=True)
    folds: list[dict[str, Any]] = [{"fold": fold} for fold in range(arguments.folds)] or [{}]
    configs = (
        {**fixed, **config, "lr": rates[config["arm"]], **fold} for config in comparison(arguments) for fold in folds
    )
    work_all(pool, configs, arguments, end)
    if pool is not None:
        pool.close()
        pool.join()


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("prepare", help="write a cohort into one file")
    make.add_argument("folder", type=Path)
    make.add_argument("--convention", default="brats2018")
    make.add_argument("--spacing", type=float, default=3.0)
    make.add_argument("--output", type=Path, required=True)
    go = commands.add_parser("run", help="train and score")
    go.add_argument("--train", type=Path, required=True)
    go.add_argument("--test", type=Path)
    go.add_argument("--folds", type=int, default=0)
    go.add_argument("--out", type=Path, required=True)
    go.add_argument("--rates", type=Path, help="folder of a run that chose the learning rates")
    go.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    go.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.05, 1.0, 0.2, 0.5])
    go.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    go.add_argument("--variant", default="", choices=["", *ABLATIONS], help="what all arms do differently")
    go.add_argument("--ablations", nargs="*", choices=ABLATIONS, default=list(ABLATIONS))
    go.add_argument("--ablation-share", type=float, default=0.1)
    go.add_argument("--steps", type=int, default=DEFAULTS["steps"])
    go.add_argument("--batch-size", type=int, default=DEFAULTS["batch_size"])
    go.add_argument("--filters", nargs="+", type=int, default=list(DEFAULTS["filters"]))
    go.add_argument("--set", default="{}", help="further settings of all runs, as JSON")
    go.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    go.add_argument("--jobs", type=int, default=1)
    go.add_argument("--threads", type=int, default=1)
    go.add_argument("--seconds", type=float, default=0.0, help="start no run after so many seconds; 0: no limit")
    table = commands.add_parser("table", help="summarize")
    table.add_argument("--out", type=Path, required=True)
    table.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "run" and (arguments.test is None) == (not arguments.folds):
        parser.error("give either --test or --folds")
    return arguments


def main() -> None:
    """Run a command."""
    arguments = parse()
    if arguments.command == "prepare":
        prepare(arguments.folder, arguments.convention, arguments.spacing, arguments.output)
    elif arguments.command == "run":
        run_all(arguments)
    else:
        write_table(arguments.out, arguments.result)


if __name__ == "__main__":
    main()
