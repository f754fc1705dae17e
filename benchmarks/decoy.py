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

    monai-rrr phantom cohort --cases 96 --spacing 5 --controls 0.5
    monai-rrr decoy cohort decoy --marker letter --convention brats2018
    python benchmarks/decoy.py run --data decoy --out work --seeds 0 1 2 --methods methods.yaml
    python benchmarks/decoy.py table --out work --result benchmarks/results/decoy.json

A method is an entry of a YAML or JSON file: terms and weights that join the task loss in the objective, the share of
the training cases whose mask is given, and nothing else:

    energy_10:
      mask_share: 0.1
      terms:
        right_reasons:
          _target_: monai_rrr.objectives.RightReasons
          attribute: {_target_: monai_rrr.attribution.CAM, layer: features, head: head}
      weights: {right_reasons: 1.0}

``task`` (the task loss alone) is always there. The batch holds ``image``, ``class_label``, ``evidence_mask`` (class 1:
the lesion; class 0: the brain), ``has_mask``, ``brain`` and ``case_id``. All methods of a seed start from the same
weights and see the same batches. Finished runs are kept and skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from monai.networks.nets.segresnet_ds import SegResEncoder
from monai.transforms import Compose, CropForegroundd, NormalizeIntensityd, Orientationd, ResizeWithPadOrCropd
from monai.utils import set_determinism
from torch import Tensor, nn

from monai_rrr.attribution import CAM, Trace, record, resize_heatmap
from monai_rrr.data import load_decoy, read_verified
from monai_rrr.engines import explanation_update
from monai_rrr.metrics import LocalizationScores, TopLabelCalibration, bootstrap_mean
from monai_rrr.networks import EncoderClassifier
from monai_rrr.objectives import Objective
from monai_rrr.report import brain_mask, read_image
from monai_rrr.utils.enums import MODALITIES
from monai_rrr.utils.files import atomic_write

TEST_SETS = ("iid", "removed", "random", "conflicting")
SCORES = ("epg", "pointing", "iou", "lift", "outside_sign", "marker_mass")
ATTRIBUTE = CAM("features", head="head")
CONTRAST = "contrast_"
SETTINGS = ("epochs", "batch_size", "learning_rate", "width", "size")
KEYS = ("image", "lesion", "marker_mask")


@dataclass(frozen=True)
class TaskLoss:
    """Cross-entropy of the class."""

    layers: tuple[str, ...] = ()

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(trace.logits.float(), batch["class_label"])


def load_set(folder: Path, section: str, size: Sequence[int]) -> list[dict[str, Any]]:
    """All cases of a set as arrays on one grid; small enough to stay in memory."""
    axes = (("L", "R"), ("P", "A"), ("I", "S"))
    prepare = Compose(
        [
            Orientationd(keys=KEYS, axcodes="RAS", labels=axes),
            CropForegroundd(keys=KEYS, source_key="image"),
            ResizeWithPadOrCropd(keys=KEYS, spatial_size=size),
            NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True),
        ]
    )
    cases = []
    for case in load_decoy(folder, section):
        names = [name for name in MODALITIES if name in case["modalities"]]
        image = read_image(case, names)
        sample = {"image": image}
        for key, path in (("lesion", case.get("label")), ("marker_mask", case.get("marker_mask"))):
            array = np.zeros(image.shape[1:]) if path is None else read_verified(path).array
            sample[key] = MetaTensor(torch.from_numpy(np.ascontiguousarray(array))[None].float(), affine=image.affine)
        prepared = prepare(sample)
        plain = {key: prepared[key].as_tensor().contiguous() for key in KEYS}
        brain = torch.from_numpy(brain_mask(dict(zip(names, plain["image"].numpy(), strict=True))))[None]
        lesion, label = plain["lesion"] > 0, int(case["class_label"])
        cases.append(
            {
                "case_id": case["case_id"],
                "image": plain["image"],
                "class_label": torch.tensor(label),
                "lesion": lesion,
                "evidence_mask": (lesion if label else brain).float(),
                "brain": brain,
                "marker_mask": plain["marker_mask"] > 0,
                "spacing": image.affine[:3, :3].norm(dim=0).tolist(),
            }
        )
    return cases


def make_network(channels: int, width: int) -> nn.Module:
    """Return a SegResNet encoder of three levels with a head; stride 4.

    Batch normalization, because group and instance normalization mix all voxels of an image, so that evidence need not
    lie where the cause is.
    """
    encoder = SegResEncoder(3, width, channels, norm="batch", blocks_down=(1, 1, 1))
    return EncoderClassifier(encoder, 4 * width, num_classes=2)


def train(
    network: nn.Module, cases: Sequence[Mapping[str, Any]], method: Mapping[str, Any], seed: int, options: Any
) -> dict[str, float]:
    """Train with the task loss and the terms of a method; return what a step costs."""
    terms = ConfigParser({"terms": method.get("terms", {})}).get_parsed_content("terms") or {}
    objective = Objective({"task": TaskLoss(), **terms}, method.get("weights", {}))
    order = np.random.RandomState(seed).permutation(len(cases))
    given = {cases[i]["case_id"] for i in order[: int(np.ceil(method.get("mask_share", 1.0) * len(cases)))]}
    keep = ("case_id", "image", "class_label", "evidence_mask", "brain")
    data = [{**{key: case[key] for key in keep}, "has_mask": torch.tensor(case["case_id"] in given)} for case in cases]
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(Dataset(data), batch_size=options.batch_size, shuffle=True, drop_last=True, generator=generator)
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.epochs * len(loader), pct_start=0.1
    )
    times: list[float] = []

    def step(engine: SupervisedTrainer, batch: Mapping[str, Any]) -> dict[str, Any]:
        begin = time.perf_counter()
        output = explanation_update(engine, batch)
        schedule.step()
        times.append(time.perf_counter() - begin)
        return output

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    SupervisedTrainer(
        device=device,
        max_epochs=options.epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=objective,
        prepare_batch=_to_device,
        iteration_update=step,
        decollate=False,
    ).run()
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else float("nan")
    return {"seconds_per_step": statistics.median(times), "steps": len(times), "peak_mib": memory}


def _to_device(batch: Mapping[str, Any], device: torch.device, non_blocking: bool, **_: Any) -> dict[str, Any]:
    return {
        key: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def evaluate(network: nn.Module, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Predictions of all cases of a set, and where the evidence for class 1 (over class 0) lies in cases of class 1."""
    device = next(network.parameters()).device
    network.eval()
    right: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {}
    calibration = TopLabelCalibration()
    for case in cases:
        with torch.no_grad():
            trace = record(network, case["image"][None].to(device), ATTRIBUTE.layers)
            heatmaps = ATTRIBUTE(trace, torch.tensor([[1, 0]], device=device)).cpu()
        probability = trace.logits.softmax(1).cpu()
        calibration(probability, case["class_label"][None])
        right[case["case_id"]] = float(probability.argmax() == case["class_label"])
        if case["class_label"] == 1:
            metric = LocalizationScores(case["spacing"], tolerance_mm=5.0, scores=SCORES)
            # a softmax doesn't see what the maps of both classes share: the second column is what decides
            heatmaps[:, 1] = heatmaps[:, 0] - heatmaps[:, 1]
            heatmaps = resize_heatmap(heatmaps, case["image"].shape[1:])
            metric(heatmaps, case["lesion"][None], brain=case["brain"][None], marker=case["marker_mask"][None])
            scores[case["case_id"]] = {
                prefix + name: float(metric.aggregate(name, column))
                for column, prefix in enumerate(("", CONTRAST))
                for name in SCORES
            }
    return {"right": right, "scores": scores, "ece": float(calibration.aggregate())}


def run(options: Any) -> None:
    """Train and evaluate every method with every seed, unless its result is there."""
    methods = {"task": {}, **(ConfigParser.load_config_file(str(options.methods)) if options.methods else {})}
    chosen = options.only or list(methods)
    sections = ("training", *TEST_SETS)
    sets: dict[str, list[dict[str, Any]]] = {}
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for seed in options.seeds:
        for name in chosen:
            path = options.out / f"{name}_seed{seed}" / "result.json"
            if path.exists():
                continue
            sets = sets or {section: load_set(options.data, section, options.size) for section in sections}
            set_determinism(seed)
            network = make_network(len(sets["training"][0]["image"]), options.width).to(device)
            begin = time.perf_counter()
            cost = train(network, sets["training"], methods[name], seed, options)
            found = {section: evaluate(network, cases) for section, cases in sets.items()}
            settings = {
                key: getattr(options, key) for key in ("epochs", "batch_size", "learning_rate", "width", "size")
            }
            result = {"method": name, "seed": seed, "config": methods[name], "settings": settings, "cost": cost}
            result |= {
                "device": str(device),
                "decoy": json.loads((options.data / "decoy.json").read_text())["settings"],
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(network.cpu().state_dict(), path.parent / "model.pt")
            atomic_write(path, json.dumps({**result, "sets": found}, indent=1).encode())
            line = ", ".join(f"{section} {np.mean(list(found[section]['right'].values())):.2f}" for section in sections)
            print(f"{name} seed {seed}: {line} ({time.perf_counter() - begin:.0f} s)", flush=True)


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per method; intervals over cases, seeds averaged first."""
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        own = [result for result in results if result["method"] == method]
        row: dict[str, Any] = {"method": method, "seeds": len(own)}
        right = {name: _by_case(own, lambda sets, name=name: sets[name]["right"]) for name in TEST_SETS}
        row |= {f"accuracy_{name}": _interval(values) for name, values in right.items()}
        row["gap"] = _interval([a - b for a, b in zip(right["iid"], right["conflicting"], strict=True)])
        for score in (*SCORES, *(CONTRAST + name for name in SCORES)):
            values = _by_case(own, lambda sets, score=score: {k: v[score] for k, v in sets["iid"]["scores"].items()})
            row[score] = _interval(values)
        row["ece_iid"] = round(float(np.mean([result["sets"]["iid"]["ece"] for result in own])), 4)
        row["seconds_per_step"] = statistics.median(result["cost"]["seconds_per_step"] for result in own)
        row["peak_mib"] = statistics.median(result["cost"]["peak_mib"] for result in own)
        rows.append(row)
    task = next(row for row in rows if row["method"] == "task")
    lost = task["accuracy_iid"][0] - task["accuracy_conflicting"][0]
    for row in rows:
        gained = row["accuracy_conflicting"][0] - task["accuracy_conflicting"][0]
        row["recovered"] = round(gained / lost, 3) if lost > 0 else None
        for name in ("lift", f"{CONTRAST}lift"):
            row[f"{name}_ratio"] = round(row[name][0] / task[name][0], 3) if row[name] and task[name] else None
        row["time_ratio"] = round(row["seconds_per_step"] / task["seconds_per_step"], 3)
        row["memory_ratio"] = round(row["peak_mib"] / task["peak_mib"], 3) if row["peak_mib"] > 0 else None
    return rows


def _by_case(results: Sequence[Mapping[str, Any]], pick: Any) -> list[float]:
    """Mean over seeds of a value of every case; cases where it is never defined are left out."""
    tables = [pick(result["sets"]) for result in results]
    rows = [[table[case_id] for table in tables if np.isfinite(table[case_id])] for case_id in tables[0]]
    return [float(np.mean(row)) for row in rows if row]


def _interval(values: Sequence[float]) -> list[float] | None:
    if not values:
        return None
    found = bootstrap_mean(values)
    return [round(value, 4) for value in (found.mean, found.low, found.high)]


def table(options: Any) -> None:
    """Write all results as JSON and as a table in Markdown."""
    results = [json.loads(path.read_text()) for path in sorted(options.out.glob("*/result.json"))]
    rows = summarize(results)
    settings = {key: results[0][key] for key in ("settings", "decoy", "device")}
    content = {
        "command": options.command_line,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{os.cpu_count()} {platform.machine()} cores, {results[0]['device']}",
        "versions": {name: version(name) for name in ("monai-rrr", "monai", "torch", "numpy")},
        "cases": {name: len(results[0]["sets"][name]["right"]) for name in ("training", "iid")},
        **settings,
        "methods": {result["method"]: result["config"] for result in results},
        "rows": rows,
    }
    atomic_write(options.result, (json.dumps(content, indent=1) + "\n").encode())
    atomic_write(options.result.with_suffix(".md"), markdown(content).encode())
    print(markdown(content))


def markdown(content: Mapping[str, Any]) -> str:
    """Lay the rows out as a table."""
    scores = ("epg", "lift", f"{CONTRAST}lift", "marker_mass", f"{CONTRAST}marker_mass")
    columns = [*(f"accuracy_{name}" for name in TEST_SETS), "gap", *scores]
    head = ["method", "seeds", *(name.replace("accuracy_", "").replace("_", " ") for name in columns)]
    lines = [[*head, "recovered", "time"]]
    for row in content["rows"]:
        cells = ["n/a" if row[name] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*row[name]) for name in columns]
        recovered = "n/a" if row["recovered"] is None else f"{row['recovered']:.2f}"
        lines.append([row["method"], str(row["seeds"]), *cells, recovered, f"{row['time_ratio']:.2f}"])
    lines.insert(1, ["---"] * len(lines[0]))
    cases, decoy = content["cases"], content["decoy"]
    text = (
        f"# Decoy bench\n\nMarker {decoy['marker']} (q {decoy['q']}), {cases['training']} training and {cases['iid']} "
        f"test cases, {content['hardware']}, {content['date']}. Accuracy on the four test sets, gap iid - conflicting, "
        "evidence for class 1 on iid (contrast: for class 1 over class 0, which is what a softmax decides by), all as "
        "mean over cases with 95 % bootstrap interval, seeds averaged first; recovered: "
        "share of the accuracy that the task loss loses between iid and conflicting; time of a step over that of the "
        "task loss alone.\n\n"
    )
    return text + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("--data", type=Path, required=True, help="folder of monai-rrr decoy")
    command.add_argument("--out", type=Path, required=True, help="one folder per run: result.json, model.pt")
    command.add_argument("--methods", type=Path, help="YAML or JSON; without it the task loss alone")
    command.add_argument("--only", nargs="+", help="names of methods")
    command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    command.add_argument("--size", nargs=3, type=int, default=[32, 40, 32], help="voxels of the network's input")
    command.add_argument("--width", type=int, default=8)
    command.add_argument("--epochs", type=int, default=30)
    command.add_argument("--batch-size", type=int, default=8)
    command.add_argument("--learning-rate", type=float, default=3e-3)
    command.add_argument("--threads", type=int, default=1)
    command = commands.add_parser("table")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--result", type=Path, required=True)
    command.add_argument("--command-line", default="see the head of benchmarks/decoy.py")
    options = parser.parse_args()
    (run if options.command == "run" else table)(options)


if __name__ == "__main__":
    main()
