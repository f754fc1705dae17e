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

"""What the runs of ``tied_autoencoder.py`` say: Dice and AUROC per arm, paired differences, and the bars."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from summary_file import rounded, write_summary

from monai_rrr.metrics import bootstrap_mean, paired_difference

__all__ = ["write_table"]

Record: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str, float]  # arm, variant, share


def read_runs(out: Path) -> dict[Key, list[Record]]:
    """Finished runs of each arm, variant and share, those that chose a learning rate left out."""
    groups: dict[Key, list[Record]] = defaultdict(list)
    for file in sorted(out.glob("*_seed*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        config = record["config"]
        if not config.get("tuning"):
            groups[config["arm"], config.get("variant", ""), config["share"]].append(record)
    return dict(groups)


def dice_of(records: Sequence[Record], region: int, seeds: set[int] | None = None) -> dict[str, float]:
    """Mean Dice over seeds of each case that shows the region."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if seeds is None or record["config"]["seed"] in seeds:
            for case_id, row in zip(record["case_id"], record.get("dice", ()), strict=False):
                if row[region] is not None:
                    found[case_id].append(row[region])
    return {case_id: statistics.fmean(values) for case_id, values in sorted(found.items())}


def auroc_of(records: Sequence[Record]) -> list[float | None]:
    """AUROC of each tag, mean over seeds; folds of one seed are scored together."""
    by_seed: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_seed[record["config"]["seed"]].append(record)
    found: list[list[float]] = []
    for parts in by_seed.values():
        tags, logits = (np.concatenate([np.asarray(part[name]) for part in parts]) for name in ("tags", "logits"))
        columns = [(tags[:, k], logits[:, k]) for k in range(tags.shape[1])]
        found.append([float(roc_auc_score(y, z)) if 0 < y.mean() < 1 else float("nan") for y, z in columns])
    return [None if np.isnan(value) else round(float(value), 4) for value in np.mean(found, axis=0)]


def controls_of(records: Sequence[Record]) -> float | None:
    """Share of the brain that is said to be whole tumor in cases without any."""
    values = [
        volume[0]
        for record in records
        for volume, tags in zip(record["volume"], record["tags"], strict=True)
        if tags[0] == 0
    ]
    return round(statistics.fmean(values), 5) if values else None


def difference(a: Sequence[Record], b: Sequence[Record], region: int) -> list[float] | None:
    """Paired difference of Dice over cases, over the seeds that both have."""
    seeds = {r["config"]["seed"] for r in a} & {r["config"]["seed"] for r in b}
    first, second = dice_of(a, region, seeds), dice_of(b, region, seeds)
    if not first or first.keys() != second.keys():
        return None
    return rounded(paired_difference(_values(first), _values(second)))


def summarize(groups: dict[Key, list[Record]], regions: Sequence[str]) -> list[Record]:
    """One row for each arm, variant and share."""
    rows = []
    for (arm, variant, share), records in sorted(groups.items(), key=lambda item: (item[0][2], item[0])):
        row: Record = {
            "share": share,
            "arm": arm,
            "variant": variant,
            "runs": len(records),
            "masks": sorted({record["masks"] for record in records}),
            "lr": records[0]["config"]["lr"],
            "device": sorted({record["device"] for record in records}),
            "parameters": records[0]["parameters"],
            "step_ms": round(1000 * statistics.median(record["step_seconds"] for record in records), 1),
        }
        if "dice" in records[0]:
            for region, name in enumerate(regions):
                row[name] = rounded(bootstrap_mean(_values(dice_of(records, region))))
            row["controls"] = controls_of(records)
        if "logits" in records[0]:
            row["auroc"] = auroc_of(records)
        tied = groups.get(("tied", "" if arm == "tied" else variant, share))
        if tied and "dice" in records[0] and (arm, variant) != ("tied", ""):
            row["tied_minus_this"] = difference(tied, records, 0)
        rows.append(row)
    return rows


def bars(groups: dict[Key, list[Record]]) -> Record:
    """What was asked of the tied autoencoder, and what came out; ``None`` where nothing was asked or runs are missing.

    A variant that all arms have is held against the same bars.
    """
    found: Record = {}
    for variant, share in sorted({key[1:] for key in groups if key[0] == "tied"}):
        tied, other = groups["tied", variant, share], groups.get(("multitask", variant, share))
        plain = groups.get(("classifier", variant, 0.0))
        label = f"{share:g} masks" + (f", {variant}" if variant else "")
        if other:
            minus = difference(tied, other, 0)
            asked = None
            if minus is not None and share <= 0.1:
                asked = minus[0] >= 0.03 and minus[1] > 0
            elif minus is not None and share == 1:
                asked = minus[0] >= -0.02
            found[f"WT, tied minus multitask, {label}"] = {"difference": minus, "met": asked}
            ratio = tied[0]["parameters"] / other[0]["parameters"]
            found["parameters of tied over multitask"] = {"ratio": round(ratio, 3), "met": ratio <= 0.55}
        if plain:
            pairs = zip(auroc_of(tied), auroc_of(plain), strict=True)
            change = [None if a is None or b is None else round(a - b, 4) for a, b in pairs]
            met = all(value is None or value >= -0.01 for value in change)
            found[f"AUROC, tied minus classifier, {label}"] = {"difference": change, "met": met}
    return found


def _values(per_case: dict[str, float]) -> NDArray[np.float64]:
    return np.array(list(per_case.values()))


def markdown(record: Record, regions: Sequence[str]) -> str:
    """The rows as a table."""
    lines = [
        "# Tied autoencoder by share of masks",
        "",
        f"{record['date']}, {record['settings']}; the name of a variant says what it does differently.",
        "",
        "Dice with 95 % interval over test cases that show the region, seeds averaged first; in cases without tumor "
        "the share of the brain said to be WT; AUROC of the tags WT, TC, ET.",
        "",
        "| masks | arm | runs | "
        + " | ".join(regions)
        + " | controls | AUROC | tied minus this, WT | parameters | ms | device |",
        "|" + "---|" * (9 + len(regions)),
    ]

    def interval(value: list[float] | None) -> str:
        return "" if value is None else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"

    for row in record["rows"]:
        auroc = ", ".join("" if v is None else f"{v:.3f}" for v in row.get("auroc", ()))
        controls = row.get("controls")
        cells = [f"{row['share']:g}", f"{row['arm']} {row['variant']}".strip(), str(row["runs"])]
        cells += [interval(row.get(name)) for name in regions]
        cells += ["" if controls is None else f"{controls:.4f}", auroc, interval(row.get("tied_minus_this"))]
        cells += [str(row["parameters"]), str(row["step_ms"]), ", ".join(row["device"])]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| asked | found | met |", "|---|---|---|"]
    for name, bar in record["bars"].items():
        lines.append(f"| {name} | {bar.get('difference', bar.get('ratio'))} | {bar['met']} |")
    return "\n".join(lines) + "\n"


def write_table(out: Path, result: Path) -> None:
    """Write the summary of all finished runs as JSON and Markdown."""
    groups = read_runs(out)
    if not groups:
        raise SystemExit(f"no finished run in {out}")
    first = next(iter(groups.values()))[0]
    names = ("steps", "batch_size", "filters", "rule", "norm", "first", "normalize", "sampling", "input")
    rates = out / "rates.json"
    rows = summarize(groups, first["regions"])
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "device": sorted({name for row in rows for name in row["device"]}),
        "versions": {name: version(name) for name in ("monai", "torch", "numpy")},
        "settings": {name: first["config"][name] for name in names if name in first["config"]},
        "rates": json.loads(rates.read_text(encoding="utf-8")) if rates.exists() else {},
        "bars": bars(groups),
        "rows": rows,
    }
    write_summary(result, record, markdown(record, first["regions"]))
