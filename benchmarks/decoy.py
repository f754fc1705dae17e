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

r"""Decoy bench: who falls for a marker, and what brings them back?

    monai-rrr phantom cohort --cases 360 --spacing 6 --controls 0.5
    monai-rrr decoy cohort decoy --marker letter --convention brats2018
    python benchmarks/cohort.py decoy letter.npz
    python benchmarks/decoy.py run --data letter.npz --out work --jobs 8
    python benchmarks/decoy.py cost --data letter.npz --out work
    python benchmarks/decoy.py table --out work --result benchmarks/results/decoy.json

A method is an entry of ``decoy_methods.yaml``: terms and weights that join the task loss in the objective, and

- ``mask_share``: share of the training cases of each class whose mask is given, rounded up (default 1);
- ``masks``: wrong ones on purpose: ``random``, ``inverted`` (see ``monai_rrr.objectives.mask_control``; drawn once per
  case) or ``shuffled`` (those of other cases of the class);
- ``training: removed``: train without the marker, a reference that no method on marked images has to reach.

``task`` (the task loss alone) is always there. The network gives one logit, tumor or not. Masks (``evidence_mask``) are
the lesion, or the brain of a case without one. All methods of a seed start from the same weights and see the same
batches. A finished run is one JSON file and is skipped. Evidence is measured on the closed-form map of the tag,
whatever map the method trains on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cohort import (
    STATE,
    TEST_SETS,
    TRAINING,
    Batches,
    Cases,
    fit,
    hardware,
    make_network,
    make_trainer,
    predict,
    run_all,
    start,
)
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from torch import Tensor, nn

from monai_rrr.attribution import resize_heatmap
from monai_rrr.metrics import LocalizationScores, TopLabelCalibration, bootstrap_mean, paired_difference
from monai_rrr.objectives import Classification, Objective
from monai_rrr.objectives.mask_control import controlled_mask
from monai_rrr.report.pareto import ParetoPoint, write_pareto_picture
from monai_rrr.utils.files import atomic_write

SCORES = ("epg", "pointing", "iou", "lift", "outside_sign", "marker_mass")
SETTINGS = ("epochs", "batch_size", "learning_rate", "width")
LOCALIZED = ("iid", "removed")
METHODS = Path(__file__).with_name("decoy_methods.yaml")


def masks_given(cases: Cases, method: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor]:
    """Evidence masks ``N 1 H W D`` and which cases have one, ``N``: a share of each class, the same for all methods."""
    positive, control = cases.label[:, 0].cpu() > 0, method.get("masks", "none")
    has, source = torch.zeros(len(cases), dtype=torch.bool), torch.arange(len(cases))
    for group in (positive, ~positive):
        order = torch.from_numpy(np.random.RandomState(seed).permutation(group.nonzero()[:, 0].numpy()))
        given = order[: math.ceil(method.get("mask_share", 1.0) * len(order))]
        has[given] = True
        if control == "shuffled":
            source[given] = given.roll(1)
    device = cases.image.device
    mask = torch.where(cases.label[:, 0].bool().reshape(-1, 1, 1, 1, 1), cases.lesion, cases.brain)
    mask = mask[source.to(device)].float()
    if control in ("random", "inverted"):
        names = {"case_id": cases.case_id}
        wrong, _ = controlled_mask(mask.cpu()[:, None], has, cases.brain.cpu().float(), names, control, seed)
        mask = wrong[:, 0].to(device)
    return mask, has.to(device)


def prepared(method: Mapping[str, Any], training: Cases, seed: int, batch_size: int) -> tuple[Batches, Objective]:
    """Batches and objective of a method."""
    terms = ConfigParser({"terms": method.get("terms", {})}).get_parsed_content("terms") or {}
    weights = ConfigParser({"weights": method.get("weights", {})}).get_parsed_content("weights") or {}
    cases = training.without_marker() if method.get("training") == "removed" else training
    mask, has = masks_given(cases, method, seed)
    batches = Batches(cases, {"evidence_mask": mask, "has_mask": has}, batch_size, seed)
    return batches, Objective({"task": Classification(), **terms}, weights)


def evaluate(network: nn.Module, cases: Cases, localized: bool) -> dict[str, Any]:
    """Logits of all cases of a set, and where the evidence for the tag lies in the cases that have it."""
    logits, heatmaps = predict(network, cases)
    probability = torch.stack([(-logits).sigmoid(), logits.sigmoid()], 1).cpu()
    calibration = TopLabelCalibration()
    calibration(probability, cases.label[:, 0].long().cpu())
    found: dict[str, Any] = {
        "logit": [round(value, 3) for value in logits.tolist()],
        "ece": round(float(calibration.aggregate()), 4),
    }
    if localized:
        rows = (cases.label[:, 0] > 0).nonzero()[:, 0].tolist()
        chosen = cases.take(rows)
        metric = LocalizationScores(cases.spacing, tolerance_mm=6.0, scores=SCORES)
        maps = resize_heatmap(heatmaps[rows], cases.image.shape[2:]).cpu()
        metric(maps, chosen.lesion.cpu(), brain=chosen.brain.cpu(), marker=chosen.marker.cpu())
        found["scores"] = {name: [round(v, 4) for v in metric.values(name, 0).tolist()] for name in SCORES}
    return found


def work(task: tuple[str, int]) -> str:
    """Train and evaluate one method with one seed."""
    name, seed = task
    options, sets, begin = STATE["options"], STATE["sets"], time.perf_counter()
    method = STATE["methods"][name]
    set_determinism(seed)
    training = sets[TRAINING]
    network = make_network(training.image.shape[1], options.width).to(training.image.device)
    batches, objective = prepared(method, training, seed, options.batch_size)
    fit(network, batches, objective, options.epochs, options.learning_rate)
    found = {section: evaluate(network, cases, section in LOCALIZED) for section, cases in sets.items()}
    result = {
        "method": name,
        "seed": seed,
        "config": method,
        "settings": {key: getattr(options, key) for key in SETTINGS},
        "decoy": STATE["decoy"],
        "device": hardware(training.image.device),
        "torch": torch.__version__,
        "label": {section: cases.label[:, 0].int().tolist() for section, cases in sets.items()},
        "sets": found,
    }
    atomic_write(options.out / f"{name}_seed{seed}.json", json.dumps(result).encode())
    line = ", ".join(f"{section} {_accuracy(result, section):.2f}" for section in sets)
    lift = np.nanmean(found["iid"]["scores"]["lift"])
    return f"{name} seed {seed}: {line}, lift {lift:.2f} ({time.perf_counter() - begin:.0f} s)"


def run(options: Any) -> None:
    """Train and evaluate every method with every seed, unless its result is there."""
    options.out.mkdir(parents=True, exist_ok=True)
    methods = load_methods(options.methods)
    tasks = [(name, seed) for seed in options.seeds for name in options.only or methods]
    tasks = [(name, seed) for name, seed in tasks if not (options.out / f"{name}_seed{seed}.json").exists()]
    run_all(tasks, work, start_run, options)


def start_run(options: Any) -> None:
    """Load what every run of a process needs."""
    start(options)
    STATE["methods"] = load_methods(options.methods)


def load_methods(path: Path) -> dict[str, dict[str, Any]]:
    """Read the methods; ``task`` comes first."""
    content = ConfigParser.load_config_file(str(path))
    return {"task": {}, **{name: method for name, method in content.items() if not name.startswith("_")}}


def cost(options: Any) -> None:
    """Time one step of every method, all interleaved in one process, and the memory it needs at its peak."""
    start_run(options)
    training: Cases = STATE["sets"][TRAINING]
    device = training.image.device
    engines = {}
    for name in options.only or STATE["methods"]:
        method = {**STATE["methods"][name], "weights": {}}  # ramps at their end: every term counts
        network = make_network(training.image.shape[1], options.width).to(device)
        batches, objective = prepared(method, training, 0, options.batch_size)
        engine = make_trainer(network.train(), batches, objective, options.rounds + 2, options.learning_rate)
        engine.state.max_epochs, engine.state.epoch_length = options.rounds + 2, len(batches)
        engines[name] = (engine, next(iter(batches)))
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    peak = dict.fromkeys(engines, float("nan"))
    for number in range(options.rounds + 1):
        for name, (engine, batch) in engines.items():
            engine.state.iteration += 1
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                base = torch.cuda.memory_allocated(device)
            begin = _clock(device)
            engine._process_function(engine, batch)
            seconds[name].append(_clock(device) - begin)
            if device.type == "cuda":
                peak[name] = (torch.cuda.max_memory_allocated(device) - base) / 2**20
            if number == 0:
                seconds[name].clear()
    rows = {
        name: {
            "seconds": statistics.median(values),
            "time": round(statistics.median(a / b for a, b in zip(values, seconds["task"], strict=True)), 3),
            "peak_mib": round(peak[name], 1) if device.type == "cuda" else None,
            "memory": round(peak[name] / peak["task"], 3) if device.type == "cuda" else None,
        }
        for name, values in seconds.items()
    }
    content = {"device": hardware(device), "batch_size": options.batch_size, "rounds": options.rounds, "rows": rows}
    atomic_write(options.out / "cost" / "cost.json", json.dumps(content, indent=1).encode())
    print(json.dumps({name: (row["time"], row["memory"]) for name, row in rows.items()}))


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _accuracy(result: Mapping[str, Any], section: str) -> float:
    return float(np.mean(_right(result, section)))


def _right(result: Mapping[str, Any], section: str) -> list[float]:
    pairs = zip(result["sets"][section]["logit"], result["label"][section], strict=True)
    return [float((logit > 0) == bool(label)) for logit, label in pairs]


def _f1(result: Mapping[str, Any], section: str) -> float:
    said, true = np.array(result["sets"][section]["logit"]) > 0, np.array(result["label"][section]) > 0
    return float(2 * (said & true).sum() / max(1, said.sum() + true.sum()))


def summarize(results: Sequence[Mapping[str, Any]], costs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per method; intervals over cases, seeds averaged first."""
    methods = dict.fromkeys(result["method"] for result in results)
    groups = {name: [result for result in results if result["method"] == name] for name in methods}
    task = _row("task", groups["task"])
    lost = task["accuracy_iid"][0] - task["accuracy_conflicting"][0]
    rows = []
    for name, own in groups.items():
        row = _row(name, own)
        gained = row["accuracy_conflicting"][0] - task["accuracy_conflicting"][0]
        row["recovered"] = round(gained / lost, 3) if lost > 0 else None
        row["lift_ratio"] = round(row["lift"][0] / task["lift"][0], 3) if row["lift"] and task["lift"] else None
        pairs = [[_right(result, "conflicting") for result in group] for group in (own, groups["task"])]
        found = paired_difference(*pairs)
        row["conflicting_minus_task"] = [round(value, 4) for value in (found.mean, found.low, found.high)]
        row |= {key: costs.get(name, {}).get(key) for key in ("time", "memory")}
        rows.append(row)
    return rows


def _row(name: str, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": name, "seeds": len(own)}
    right = {s: np.mean([_right(result, s) for result in own], axis=0) for s in TEST_SETS}
    row |= {f"accuracy_{section}": _interval(values) for section, values in right.items()}
    row["by_seed"] = {s: [round(_accuracy(result, s), 4) for result in own] for s in TEST_SETS}
    row["gap"] = _interval(right["iid"] - right["conflicting"])
    row["f1_random"] = round(float(np.mean([_f1(result, "random") for result in own])), 4)
    for section, prefix in (("iid", ""), ("removed", "removed_")):
        for score in SCORES:
            table = np.array([result["sets"][section]["scores"][score] for result in own], dtype=float)
            known = table[:, np.isfinite(table).any(0)]
            row[prefix + score] = _interval(np.nanmean(known, axis=0)) if known.size else None
            row[f"{prefix}{score}_undefined"] = int((~np.isfinite(table)).sum())
    row["ece_iid"] = round(float(np.mean([result["sets"]["iid"]["ece"] for result in own])), 4)
    return row


def _interval(values: Any) -> list[float]:
    found = bootstrap_mean(values)
    return [round(value, 4) for value in (found.mean, found.low, found.high)]


def table(options: Any) -> None:
    """Write all results as JSON, as a table in Markdown, and the weights' Pareto plot."""
    results = [json.loads(path.read_text()) for path in sorted(options.out.glob("*_seed*.json"))]
    order = list(load_methods(options.methods))
    results.sort(key=lambda result: (order.index(result["method"]), result["seed"]))
    path = options.out / "cost" / "cost.json"
    measured = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    rows = summarize(results, measured["rows"])
    content = {
        "command": options.command_line,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": results[0]["device"],
        "versions": {name: version(name) for name in ("monai", "numpy")} | {"torch": results[0]["torch"]},
        "cases": {name: len(results[0]["label"][name]) for name in ("training", "iid")},
        **{key: results[0][key] for key in ("settings", "decoy")},
        "methods": {result["method"]: result["config"] for result in results},
        "cost": {key: value for key, value in measured.items() if key != "rows"},
        "rows": rows,
    }
    atomic_write(options.result, (json.dumps(content, indent=1) + "\n").encode())
    atomic_write(options.result.with_suffix(".md"), markdown(content).encode())
    swept = {name.partition("_weight_")[0] for name in content["methods"] if "_weight_" in name}
    points = [
        ParetoPoint(name, _weight(config), row["f1_random"], {"EPG": row["epg"][0], "IoU": row["iou"][0]})
        for row, config in ((row, content["methods"][row["method"]]) for row in rows)
        if (name := row["method"].partition("_weight_")[0]) in swept
    ]
    if points:
        write_pareto_picture(points, options.result.with_suffix(".png"))
    print(markdown(content))


def _weight(config: Mapping[str, Any]) -> float:
    """Weight that a method's masks rise to."""
    return float(config["weights"]["guide"]["end_value"])


def markdown(content: Mapping[str, Any]) -> str:
    """Lay the rows out as a table."""
    scores = ("epg", "lift", "marker_mass", "removed_lift")
    columns = [*(f"accuracy_{name}" for name in TEST_SETS), "gap", *scores]
    head = ["method", "seeds", *(name.replace("accuracy_", "").replace("_", " ") for name in columns)]
    lines = [[*head, "recovered", "time", "memory"]]
    for row in content["rows"]:
        cells = ["n/a" if row[name] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*row[name]) for name in columns]
        rest = ["n/a" if row[name] is None else f"{row[name]:.2f}" for name in ("recovered", "time", "memory")]
        lines.append([row["method"], str(row["seeds"]), *cells, *rest])
    lines.insert(1, ["---"] * len(lines[0]))
    cases, decoy = content["cases"], content["decoy"]
    text = (
        f"# Decoy bench\n\nMade by `{content['command']}`. Marker {decoy['marker']} (q {decoy['q']}), "
        f"{cases['training']} training and {cases['iid']} test cases, {content['hardware']}, {content['date']}. "
        "Accuracy on the four test sets, gap iid - conflicting, evidence for the tag on iid (last column: on removed), "
        "all as mean over cases with 95 % bootstrap interval, seeds averaged first; recovered: share of the accuracy "
        "that the task loss loses between iid and conflicting; time and memory of a step over those of the task loss "
        "alone.\n\n"
    )
    return text + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    actions: dict[str, Callable[[Any], None]] = {"run": run, "cost": cost, "table": table}
    for name in actions:
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, required=True, help="folder of the results, one file per run")
        command.add_argument("--methods", type=Path, default=METHODS, help="YAML or JSON")
        if name == "table":
            command.add_argument("--result", type=Path, required=True)
            command.add_argument("--command-line", default="python benchmarks/decoy.py run ...")
            continue
        command.add_argument("--data", type=Path, required=True, help="file of benchmarks/cohort.py")
        command.add_argument("--only", nargs="+", help="names of methods")
        command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        command.add_argument("--device", help="default: cuda if there is one")
        command.add_argument("--jobs", type=int, default=1, help="processes")
        command.add_argument("--rounds", type=int, default=5, help="of the cost")
        command.add_argument("--width", type=int, default=8)
        command.add_argument("--epochs", type=int, default=40)
        command.add_argument("--batch-size", type=int, default=16)
        command.add_argument("--learning-rate", type=float, default=1e-2)
    options = parser.parse_args()
    actions[options.command](options)


if __name__ == "__main__":
    main()
