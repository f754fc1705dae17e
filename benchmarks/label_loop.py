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

r"""The loop of the labeling server: see where the model looks, correct it in a few cases, train, look again.

    python benchmarks/label_loop.py run --out work
    python benchmarks/label_loop.py table --out work --result benchmarks/results/label_loop.json

A synthetic cohort (6 mm, half of the cases with a tumor) carries a letter beside the brain in 95 % of its tumor cases.
A report says of every training case whether it has a tumor, but not where: tags span the whole case. A model is
trained with these tags alone. Then ``k`` tumor cases that carry the letter get a label ``evidence``, as an annotator
draws it: 1 in the tumor and one voxel around it, 2 in the box of the letter. The training of the label app goes on from
the weights that are served, for as many steps again. ``k = 0`` is the same training without any correction.

Everything runs through the entry points of the label app (``BundleModel``, ``CaseStore``, ``train_bundle``), in the
process and without HTTP. A case is called a tumor when the heatmap of the whole tumor reaches 0.5 anywhere, a threshold
that nobody tuned; or, for the conflicting cases, the threshold at which most of the others (``iid``) are called what
they are. The area under the ROC curve needs none. A finished run is one JSON file and is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_roc_auc
from numpy.typing import NDArray
from scipy import ndimage
from summary_file import rounded, write_summary

from monai_rrr.data import (
    DecoySettings,
    derive_tags,
    generate_cohort,
    load_datalist,
    load_decoy,
    make_decoy,
    read_verified,
)
from monai_rrr.label import BundleModel, CaseStore, TrainRequest, train_bundle
from monai_rrr.metrics import bootstrap_mean, energy_share
from monai_rrr.utils.files import atomic_write
from monai_rrr.utils.nifti_file import affine_geometry, nifti_bytes

BUNDLE = "brats_mri_guided_attention"
BUNDLES = Path(__file__).parents[1] / "bundles"
SETTINGS = {"spacing": 6.0, "roi_size": [32, 32, 8], "val_interval": 1000}
SECTIONS = ("iid", "conflicting")
CORRECTED = (0, 1, 3, 10)
CONVENTION = "brats2018"
SHOWN = 0.5  # of the heatmap: a tumor is there


def make_cohort(folder: Path, cases: int, seed: int) -> None:
    """Write the cohort, and its copy with the marker to ``decoy``."""
    generate_cohort(folder / "cohort", cases, seed, spacing=6.0, controls=0.5)
    listed = load_datalist(folder / "cohort")
    settings = DecoySettings(marker="letter", q=0.95, held_out=0.4, seed=seed)
    make_decoy(listed, derive_tags(listed, CONVENTION), folder / "decoy", settings)


def case_tags(cohort: Path) -> dict[str, dict[str, tuple[int, int] | None]]:
    """Tags that say no more than whether there is a tumor: they span the whole case."""
    listed = load_datalist(cohort)
    depth = {str(case["case_id"]): read_verified(case["label"]).array.shape[2] for case in listed}
    return {
        case_id: {region: None if span is None else (0, depth[case_id] - 1) for region, span in found.items()}
        for case_id, found in derive_tags(listed, CONVENTION).items()
    }


def evidence_marks(case: Mapping[str, Any]) -> bytes:
    """What an annotator draws in a case: 1 in the tumor and one voxel around it, 2 in the box of the letter."""
    tumor, marker = read_verified(case["label"]), read_verified(case["marker_mask"])
    marks = np.zeros(tumor.array.shape, np.uint8)
    marks[ndimage.binary_dilation(tumor.array > 0)] = 1
    marks[ndimage.find_objects((marker.array > 0).astype(np.uint8))[0]] = 2
    return nifti_bytes(marks, affine_geometry(tumor.affine))


def correctable(cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Training cases in which an annotator sees the heatmap on the letter: tumor cases that carry it."""
    return [case for case in cases if case["class_label"] and case["marker"]]


def measure(model: BundleModel, cases: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Look at every case: the highest value of the heatmap, and where the evidence lies in those with a tumor."""
    found: dict[str, list[float]] = {"label": [], "score": [], "lift": [], "marker": []}
    for case in cases:
        heatmap = model.predict(case).heatmap("WT")
        found["label"].append(case["class_label"])
        found["score"].append(round(float(heatmap.max()), 5))
        if case["class_label"]:
            lesion, marker = (read_verified(case[key]).array > 0 for key in ("label", "marker_mask"))
            found["lift"].append(round(_share(heatmap, lesion) / float(lesion.sum() / (heatmap > 0).sum()), 4))
            if case["marker"]:
                found["marker"].append(round(_share(heatmap, marker), 5))
    return found


def _share(heatmap: NDArray[np.float32], region: NDArray[np.bool_]) -> float:
    return float(energy_share(*(torch.as_tensor(np.ascontiguousarray(a))[None, None] for a in (heatmap, region))))


def accuracy(found: Mapping[str, Sequence[float]], threshold: float = SHOWN) -> list[float]:
    """1 for each case that is called what it is."""
    return [float((s > threshold) == bool(y)) for s, y in zip(found["score"], found["label"], strict=True)]


def best_threshold(found: Mapping[str, Sequence[float]]) -> float:
    """Threshold at which most cases are called what they are, midway between two of them; the lowest among equals."""
    scores = sorted({0.0, *found["score"], 1.0})
    middles = [(low + high) / 2 for low, high in pairwise(scores)]
    return max(middles, key=lambda threshold: statistics.fmean(accuracy(found, threshold)))


def auc(found: Mapping[str, Sequence[float]]) -> float:
    """Area under the ROC curve: how well the highest value tells the cases apart, at any threshold."""
    return float(compute_roc_auc(torch.tensor(found["score"]), torch.tensor(found["label"])))


def one_seed(options: Any, seed: int) -> None:
    """Train with tags, then with every number of corrections from there; one file per result."""
    target = {k: options.out / f"seed{seed}_{'before' if k is None else k}.json" for k in (None, *CORRECTED)}
    if all(path.exists() for path in target.values()):
        return
    folder = options.out / f"work_seed{seed}"  # what is there is used again
    if not (folder / "decoy").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_cohort(folder, options.cases, seed)
    decoy, served = folder / "decoy", folder / "served"
    tags = case_tags(folder / "cohort")
    bundle = folder / "bundle" / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(BUNDLES / BUNDLE, bundle, ignore=shutil.ignore_patterns("eval", "*.pt*"))
    model = BundleModel(bundle, folder / "work", SETTINGS)
    training = load_decoy(decoy)
    for k, path in target.items():
        if path.exists() and (k is not None or served.exists()):
            continue
        store = CaseStore(training, folder / f"store_{k}")
        for case in correctable(training)[: k or 0]:
            marks = folder / "marks.nii.gz"
            atomic_write(marks, evidence_marks(case))
            store.submit(case["case_id"], marks, "evidence", {"annotator": "a1"})
        if k is not None:
            shutil.copytree(served, model.weights.parent, dirs_exist_ok=True)
        begin = time.perf_counter()
        # a corrected case is half of every batch of two, so that an epoch has twice as many steps
        epochs = options.epochs // 2 if k else options.epochs
        request = TrainRequest(epochs=epochs, held_out=0.0, pretrained=k is not None, seed=seed)
        report = train_bundle(model, store, request, tags)
        if k is None:
            shutil.copytree(model.weights.parent, served)
        record = {
            "seed": seed,
            "corrected": k,
            "settings": {"cases": options.cases, "epochs": options.epochs},
            "report": {key: value for key, value in report.items() if key != "log"},
            "train_seconds": round(time.perf_counter() - begin, 1),
            "sets": {name: measure(model, load_decoy(decoy, name)) for name in SECTIONS},
        }
        atomic_write(path, json.dumps(record).encode())
        print(line(record), flush=True)


def line(record: Mapping[str, Any]) -> str:
    """Say in one line what came out."""
    sets = record["sets"]
    words = [f"{name} {statistics.fmean(accuracy(sets[name])):.3f} (AUC {auc(sets[name]):.3f})" for name in SECTIONS]
    lift, marker = (statistics.fmean(sets["iid"][key]) for key in ("lift", "marker"))
    where = "before" if record["corrected"] is None else f"k={record['corrected']}"
    return f"seed {record['seed']} {where}: {', '.join(words)}, lift {lift:.2f}, on the letter {marker:.3f}"


def run(options: Any) -> None:
    """Run every seed."""
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        one_seed(options, seed)


def summarize(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per number of corrected cases; intervals over cases, seeds together."""
    rows = []
    for k in (None, *CORRECTED):
        own = sorted((r for r in records if r["corrected"] == k), key=lambda r: r["seed"])
        if not own:
            continue
        row: dict[str, Any] = {"corrected": k, "seeds": [r["seed"] for r in own]}
        thresholds = [best_threshold(r["sets"]["iid"]) for r in own]
        for key, at in (("accuracy", [SHOWN] * len(own)), ("chosen", thresholds)):
            for name in SECTIONS:
                by_seed = [accuracy(r["sets"][name], threshold) for r, threshold in zip(own, at, strict=True)]
                row[f"{key}_{name}"] = rounded(bootstrap_mean([v for values in by_seed for v in values]))
                row[f"{key}_{name}_by_seed"] = [round(statistics.fmean(values), 4) for values in by_seed]
        for name in SECTIONS:
            row[f"auc_{name}_by_seed"] = [round(auc(r["sets"][name]), 4) for r in own]
        row["threshold_by_seed"] = [round(t, 4) for t in thresholds]
        for key in ("lift", "marker"):
            row[key] = rounded(bootstrap_mean([v for r in own for v in r["sets"]["iid"][key]]))
            row[f"{key}_by_seed"] = [round(statistics.fmean(r["sets"]["iid"][key]), 4) for r in own]
        row["train_seconds"] = [r["train_seconds"] for r in own]
        rows.append(row)
    return rows


def table(options: Any) -> None:
    """Write all results as JSON and as a table in Markdown."""
    records = [json.loads(path.read_text()) for path in sorted(options.out.glob("seed*.json"))]
    content = {
        "command": "python benchmarks/label_loop.py run --out work",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{os.cpu_count()} {platform.machine()} cores, one thread",
        "versions": {name: version(name) for name in ("torch", "monai", "numpy")},
        "cases": {
            "training": records[0]["report"]["cases"],
            **{name: len(records[0]["sets"][name]["label"]) for name in SECTIONS},
        },
        "settings": {**SETTINGS, "bundle": BUNDLE, **records[-1]["settings"]},
        "rows": summarize(records),
    }
    write_summary(options.result, content, markdown(content))


def markdown(content: Mapping[str, Any]) -> str:
    """Return the table."""
    cases = content["cases"]
    lines = [
        "# The loop: correct where it looks, in a few cases",
        "",
        f"`{content['command']}`, {content['hardware']}, {content['date']}. {cases['training']} training cases and "
        f"{cases['iid']} test cases per seed; mean over cases and seeds [95 % bootstrap interval], then the seeds. "
        f"Accuracy at {SHOWN}, and, chosen, at the threshold that is best for iid.",
        "",
        "| corrected cases | AUC, conflicting | AUC, iid | accuracy, conflicting | accuracy, iid | "
        "chosen, conflicting | chosen, iid (the best there is) | lift in the tumor | evidence on the letter |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        first = "before" if row["corrected"] is None else f"{row['corrected']}, trained on"
        cells = [
            *(", ".join(f"{value:.2f}" for value in row[f"auc_{name}_by_seed"]) for name in reversed(SECTIONS)),
            _cell(row["accuracy_conflicting"], row["accuracy_conflicting_by_seed"], 2),
            _cell(row["accuracy_iid"], row["accuracy_iid_by_seed"], 2),
            _cell(row["chosen_conflicting"], row["chosen_conflicting_by_seed"], 2),
            _cell(row["chosen_iid"], row["chosen_iid_by_seed"], 2),
            _cell(row["lift"], row["lift_by_seed"], 2),
            _cell(row["marker"], row["marker_by_seed"], 3),
        ]
        lines.append(f"| {first} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(interval: Sequence[float], by_seed: Sequence[float], digits: int) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in interval)
    return f"{mean} [{low}, {high}]; {', '.join(f'{value:.{digits}f}' for value in by_seed)}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    one.add_argument("--cases", type=int, default=60)
    one.add_argument("--epochs", type=int, default=10)
    one.set_defaults(do=run)
    two = commands.add_parser("table")
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--result", type=Path, required=True)
    two.set_defaults(do=table)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
