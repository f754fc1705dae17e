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

r"""Ablation of the equivariant CAM bundle: train, evaluate, tabulate.

    python benchmarks/equivariant_cam.py run --data DIR --tags tags.csv --convention brats2018 --out DIR \
        --methods plain full --seeds 0 1 2
    python benchmarks/equivariant_cam.py test --out DIR --data OTHER --convention brats2018
    python benchmarks/equivariant_cam.py table --out DIR --result benchmarks/results/equivariant_cam_synthetic.json

``test`` scores finished runs on another cohort, at the thresholds that each criterion chose on the training tags;
``table`` then reports that cohort.
Every run is the bundle itself (train.yaml and evaluate.yaml with overrides), so the figures are those of what users
run. Finished runs are kept and skipped; ``table`` compares paired over cases, the mean over seeds first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from monai import bundle
from monai.bundle import ConfigParser
from monai.transforms import Compose

from monai_rrr.data import BrainBoxCache, LoadBrainBoxd, load_datalist
from monai_rrr.handlers import HeatmapEvaluation, TagCalibrationHandler
from monai_rrr.metrics import Interval, bootstrap_mean, paired_difference
from monai_rrr.transforms import HeatmapToSourced

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "brats_mri_equivariant_cam"
TERMS = ("within_modal", "cross_modal", "mutual_learning", "nesting")
OFF: dict[str, object] = {f"objective#weights#{name}": 0.0 for name in TERMS}
RAMP = {"_target_": "monai_rrr.objectives.Ramp", "end_value": 0.5, "stop": 0.4}
METHODS: dict[str, dict[str, object]] = {
    "plain": OFF,
    "er": {**OFF, "objective#weights#within_modal": 1.0},
    "kd": {**OFF, "objective#weights#mutual_learning": 0.5},
    "cm": {**OFF, "objective#weights#cross_modal": RAMP},
    "full": {},
    "full_uniform": {"objective#terms#cross_modal#weighting": "uniform"},
    "plain_instance": {**OFF, "norm": "instance"},
    "full_instance": {"norm": "instance"},
    # equal weights: tag losses say nothing about a network that is trained on masks
    "supervised": {"temperature": 1000.0},
}


def run_one(arguments: argparse.Namespace, method: str, modalities: list[str], seed: int, fold: int | None) -> None:
    """Train and evaluate one configuration, unless its result is there."""
    name = f"{method}_{'-'.join(modalities)}_seed{seed}" + ("" if fold is None else f"_fold{fold}")
    out = arguments.out.resolve() / name
    if (out / "metrics.csv").exists():
        return
    values: dict[str, object] = {
        "bundle_root": str(BUNDLE),
        "dataset_dir": str(arguments.data.resolve()),
        "tags_file": str(arguments.tags.resolve()),
        "output_dir": str(out),
        "ckpt_dir": str(out / "models"),
        "cache_dir": str(arguments.out.resolve() / "cache"),
        "seed": seed,
        "use_modalities": modalities,
        "val_interval": 1000,
        **json.loads(arguments.set),
        **{key: value for key, value in METHODS[method].items() if "#" not in key},
    }
    if fold is not None:
        split = {"cases": "@cases", "folds": arguments.folds, "fold": fold}
        values["parts"] = {"_target_": "monai_rrr.data.leave_one_fold_out", **split}
    supervised = ["supervised.yaml"] if method == "supervised" else []
    training = {**values, **({"label_convention": arguments.convention} if supervised else {}), **METHODS[method]}
    begin = time.perf_counter()
    bundle.run(config_file=_files("train.yaml", *supervised), **training)
    seconds = time.perf_counter() - begin
    evaluation = {"method": method, "label_convention": arguments.convention, "scores": arguments.scores.split(",")}
    (out / "run_options.json").write_text(json.dumps({**values, **evaluation}))
    bundle.run(config_file=_files("train.yaml", "evaluate.yaml"), **values, **evaluation)
    (out / "seconds.json").write_text(json.dumps({"train": round(seconds, 1), "threads": torch.get_num_threads()}))
    print(f"{name}: {seconds:.0f} s", flush=True)


def test(arguments: argparse.Namespace) -> None:
    """Score every finished run on another cohort, at the thresholds that each criterion chose on the training tags."""
    cases = load_datalist(arguments.data, with_labels=True)
    for file in sorted(arguments.out.glob("*/run_options.json")):
        results = {name: file.parent / f"test_{name}.csv" for name in arguments.criteria}
        if all(result.exists() for result in results.values()):
            continue
        options = json.loads(file.read_text())
        parser = ConfigParser()
        parser.read_config(_files("train.yaml"))
        parser.update(
            {key: value for key, value in options.items() if key not in ("method", "label_convention", "scores")}
        )
        network = parser.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(file.parent / "models" / "model.pt", weights_only=True))
        handlers = parser.get_parsed_content("train#handlers")
        calibrations = next(h for h in handlers if isinstance(h, TagCalibrationHandler)).collect()
        tables = {}
        for index, (name, result) in enumerate(results.items()):
            points = [calibration.solve(name) for calibration in calibrations]
            stand_in = SimpleNamespace(operating_point=torch.tensor([[p.threshold, p.min_area_mm2] for p in points]))
            tables[name] = HeatmapEvaluation(
                cases, arguments.convention, stand_in, result, options["method"], ("dice",), baselines=index == 0
            )
        used = load_datalist(arguments.data, modalities=options["use_modalities"])
        load = LoadBrainBoxd(BrainBoxCache(arguments.out / "test_cache", parser["spacing"]))
        prepare = Compose([load, parser.get_parsed_content("whole_volume")])
        inferer, back = parser.get_parsed_content("validate#inferer"), HeatmapToSourced("pred")
        for case in used:
            item = prepare(case)
            heatmap = inferer(item["image"][None], network, present=item["present"][None])[0]
            pred = back({**item, "pred": heatmap})["pred"]
            for table in tables.values():
                table.add(str(case["case_id"]), torch.as_tensor(pred), np.asarray(pred.affine))
        for table in tables.values():
            table.finish()
        print(file.parent.name, flush=True)


def _files(*names: str) -> list[str]:
    return [str(BUNDLE / "configs" / name) for name in names]


def collect(out: Path) -> pd.DataFrame:
    """All metrics of all finished runs, with modalities, seed and fold."""
    parts = []
    files = sorted(out.glob("*/test_*.csv")) or sorted(out.glob("*/metrics.csv"))
    for file in files:
        name, _, rest = file.parent.name.rpartition("_seed")
        method, _, modalities = name.rpartition("_")
        seed, _, fold = rest.partition("_fold")
        table = pd.read_csv(file).assign(run=method, modalities=modalities, seed=int(seed), fold=fold or "0")
        if file.stem == "test_f1":
            table = table[table["threshold"] == "tag_calibrated"].assign(threshold="tag_calibrated_f1")
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def summarize(table: pd.DataFrame, against: str = "plain") -> list[dict[str, object]]:
    """Mean Dice with interval per method, modalities, region and threshold, and its paired difference to a baseline."""
    rows: list[dict[str, object]] = []
    table = table[(table["method"] == table["run"]) | table["method"].isin(["flair_otsu", "flair_heuristic", "empty"])]
    per_case = table.groupby(["method", "modalities", "threshold", "region", "case_id"])["dice"].mean().reset_index()
    seeds = table.groupby(["method", "modalities"])["seed"].nunique()
    for (method, modalities, threshold, region), group in per_case.groupby(
        ["method", "modalities", "threshold", "region"]
    ):
        dice = group.set_index("case_id")["dice"]
        mean = bootstrap_mean(dice.to_numpy())
        row: dict[str, object] = {
            "method": method,
            "modalities": modalities,
            "threshold": threshold,
            "region": region,
            "cases": len(dice),
            "seeds": int(seeds[method, modalities]),
            "dice": _rounded(mean),
        }
        # the baseline's mean runs over the seeds that this method was run with
        same = table["region"].eq(region) & table["modalities"].eq(modalities) & table["threshold"].eq(threshold)
        used = table.loc[same & table["method"].eq(method), "seed"].unique()
        base = table[same & table["method"].eq(against) & table["seed"].isin(used)]
        base_dice = base.groupby("case_id")["dice"].mean().reindex(dice.index)
        if method != against and base_dice.notna().all() and len(base_dice):
            difference = paired_difference(dice.to_numpy(), base_dice.to_numpy())
            row[f"minus_{against}"] = _rounded(difference)
        rows.append(row)
    return rows


def bars(
    table: pd.DataFrame, modalities: str = "t1,t1c,t2,flair", threshold: str = "tag_calibrated"
) -> dict[str, object]:
    """The comparisons that the project set itself: WT Dice at a tag-calibrated threshold, paired over cases."""
    key = modalities.replace(",", "-")
    rows = table[table["region"].eq("WT") & table["modalities"].eq(key)]

    def dice(method: str, threshold: str) -> pd.Series:
        chosen = rows[rows["method"].eq(method) & rows["threshold"].eq(threshold)]
        return chosen.groupby("case_id")["dice"].mean()

    full, plain, upper = (dice(method, threshold) for method in ("full", "plain", "supervised"))
    if full.empty:
        return {}
    found: dict[str, object] = {}
    others = {"plain": plain, "supervised": upper}
    others |= {name: dice(name, "label_free") for name in ("flair_otsu", "flair_heuristic", "empty")}
    for name, other in others.items():
        if len(other):
            found[f"full_minus_{name}"] = _rounded(paired_difference(full.to_numpy(), other[full.index].to_numpy()))
    if len(upper):
        found["gap_closed"] = round(float((full.mean() - plain.mean()) / (upper.mean() - plain.mean())), 3)
    return found


def _rounded(interval: Interval) -> list[float]:
    return [round(v, 4) for v in (interval.mean, interval.low, interval.high)]


def write_table(arguments: argparse.Namespace) -> None:
    """Write the summary as JSON with what it takes to repeat it."""
    table = collect(arguments.out)
    record = {
        "command": arguments.command_line,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{os.cpu_count()} shared {platform.machine()} cores, CPU",
        "versions": {name: version(name) for name in ("monai-rrr", "monai", "torch", "numpy")},
        "runs": len(list(arguments.out.glob("*/metrics.csv"))),
        "scored_on": "another cohort" if list(arguments.out.glob("*/test_*.csv")) else "the held-out cases",
        "bars": bars(table),
        "bars_at_f1_threshold": bars(table, threshold="tag_calibrated_f1"),
        "rows": summarize(table),
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(record, indent=1) + "\n")
    frame = pd.DataFrame(record["rows"])
    print(frame[frame["region"] == "WT"].to_string())
    print(json.dumps(record["bars"], indent=1))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--tags", type=Path, required=True)
    run.add_argument("--convention", required=True)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--methods", nargs="+", choices=METHODS, default=["plain", "full"])
    run.add_argument("--modalities", nargs="+", default=["t1,t1c,t2,flair"], help="comma-separated sets")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--folds", type=int, default=0, help="cross-validation with so many folds; 0: the bundle's split")
    run.add_argument("--scores", default="dice", help="comma-separated")
    run.add_argument("--set", default="{}", help="further overrides of the bundle, as JSON")
    run.add_argument("--threads", type=int, default=1)
    table = commands.add_parser("table")
    table.add_argument("--out", type=Path, required=True)
    table.add_argument("--result", type=Path, required=True)
    table.add_argument("--command-line", default="see the head of benchmarks/equivariant_cam.py")
    again = commands.add_parser("test")
    again.add_argument("--out", type=Path, required=True)
    again.add_argument("--data", type=Path, required=True)
    again.add_argument("--convention", required=True)
    again.add_argument("--criteria", nargs="+", default=["f1_dice", "f1"], help="the first one is tag_calibrated")
    arguments = parser.parse_args()
    if arguments.command == "table":
        write_table(arguments)
        return
    if arguments.command == "test":
        torch.set_num_threads(1)
        test(arguments)
        return
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seeds:
        for fold in range(arguments.folds) if arguments.folds else [None]:
            for modalities in arguments.modalities:
                for method in arguments.methods:
                    run_one(arguments, method, modalities.split(","), seed, fold)


if __name__ == "__main__":
    main()
