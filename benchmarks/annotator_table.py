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

"""What the runs of ``annotator_tendency.py`` say: rows per arm, and each bar of the method beside what was found."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from annotator_bars import bars_of, per_case
from summary_file import rounded, write_summary

from monai_rrr.metrics import bootstrap_mean

__all__ = ["write_table"]

Record: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str, str]  # level, arm, variant
SETTINGS = ("channels", "features", "width", "slots", "stride", "voxels", "start_steps", "start_lr", "steps")


def read_runs(outs: Sequence[Path]) -> dict[Key, list[Record]]:
    """Finished runs of each level, arm and variant, those that chose a learning rate left out."""
    groups: dict[Key, list[Record]] = defaultdict(list)
    for out in outs:
        for file in sorted(out.glob("*_seed*.json")):
            record = json.loads(file.read_text(encoding="utf-8"))
            config = record["config"]
            if not config.get("tuning"):
                groups[config["level"], config["arm"], config.get("variant", "")].append(record)
    return dict(groups)


def interval(values: Any) -> list[float] | None:
    """Mean over cases with a bootstrap interval: first over what each case shows."""
    table = np.asarray(values, np.float64).reshape(len(values), -1)
    table = table[~np.isnan(table).all(1)]
    return rounded(bootstrap_mean(np.nanmean(table, axis=1))) if len(table) else None


def named(records: Sequence[Record]) -> Record:
    """How often the right annotator is named, by case and by region, and the chance of the latter."""
    case = np.array([row for record in records for row in record["case_name"]])
    regions = np.array([row for record in records for row in record["region_name"]], dtype=float).reshape(-1, 6)
    kinds = records[0]["kinds"]
    table = [[round(float((case[:, r] == s).mean()), 3) for s in range(len(kinds))] for r in range(len(kinds))]
    found: Record = {"case_id": round(float((case == np.arange(len(kinds))).mean()), 4), "case_table": table}
    twins = [kinds.index(kind) for kind in ("expert", "misser") if kind in kinds]
    swapped = np.where(np.isin(case, twins), twins[0], case)
    owner = np.where(np.isin(np.arange(len(kinds)), twins), twins[0], np.arange(len(kinds)))
    found["case_id_alike"] = round(float((swapped == owner).mean()), 4)
    if len(regions):
        right = regions[:, 1] == regions[:, 3]
        found["region_id"] = round(float(right.mean()), 4)
        found["region_id_or_same"] = round(float((right | (regions[:, 4] > 0)).mean()), 4)
        found["region_chance"] = round(float(regions[:, 5].mean()), 4)
        found["regions"] = len(regions) // len(kinds)
    return found


def row_of(key: Key, records: Sequence[Record]) -> Record:
    """Everything about one level, arm and variant."""
    level, arm, variant = key
    first = records[0]
    row: Record = {"level": level, "arm": arm, "variant": variant, "seeds": sorted({seed_of(r) for r in records})}
    row |= {"cases": len(per_case(records, "consensus")), "lr": first["config"]["lr"], "kinds": first["kinds"]}
    row["parameters"] = first["parameters"]
    row["step_ms"] = round(1000 * float(np.median([record["step_seconds"] for record in records])), 1)
    consensus = per_case(records, "consensus")
    row["consensus"] = interval(consensus)
    row["consensus_regions"] = [interval(consensus[:, k]) for k in range(3)]
    for score in ("ged", "d_match", "d_soft"):
        row[score] = interval(per_case(records, score))
    if "gain" not in first:
        return row
    dice, gain, ceiling = (per_case(records, score) for score in ("dice", "gain", "ceiling"))
    row["own"] = interval(dice)
    for r, kind in enumerate(first["kinds"]):
        row.setdefault("own_of", {})[kind] = interval(dice[:, r])
        row.setdefault("gain", {})[kind] = interval(gain[:, r])
        row.setdefault("gain_regions", {})[kind] = [interval(gain[:, r, k]) for k in range(3)]
        row.setdefault("ceiling", {})[kind] = interval(ceiling[:, r])
    if "case_name" in first:
        row |= named(records)
        row["deviation_auroc"] = mean_lists([record["deviation_auroc"] for record in records])
    row["tendency"] = {name: mean_lists([r["tendency"][name] for r in records]) for name in first["tendency"]}
    for name in ("why", "why_random"):
        if name in first:
            row[name] = {key: mean_numbers([r[name].get(key) for r in records]) for key in first[name]}
    if "set_accuracy" in first:
        for name in ("set_accuracy", "set_accuracy_random"):
            values = np.array([v for r in records for v in r[name] if v[2]], dtype=float)
            accuracy, chance = (float(np.average(values[:, k], weights=values[:, 2])) for k in (0, 1))
            row[name] = {"accuracy": round(accuracy, 4), "lift": round(accuracy / chance, 3)}
        row["rho"] = mean_lists([record["rho"] for record in records])
        row["gamma"] = [record["gamma"] for record in records]
        row["departure_cosine"] = np.mean([r["departure_cosine"] for r in records], axis=0).round(3).tolist()
    if "newcomer" in first:
        row["newcomer"] = newcomers(records)
    return row


def newcomers(records: Sequence[Record]) -> Record:
    """What the annotator who came later gains, by number of cases."""
    found: Record = {}
    for count, scores in records[0]["newcomer"].items():
        names = ("dice", "gain", "ceiling")
        values = {name: np.array([r["newcomer"][count][name] for r in records], np.float64) for name in names}
        found[count] = {name: interval(value.mean(0)) for name, value in values.items()} | {"added": scores["added"]}
    return found


def seed_of(record: Record) -> int:
    """Seed of a run."""
    return int(record["config"]["seed"])


def mean_numbers(values: Sequence[float | None]) -> float | None:
    """Mean of what is there."""
    there = [value for value in values if value is not None]
    return round(float(np.mean(there)), 4) if there else None


def mean_lists(values: Sequence[Sequence[Any]]) -> list[Any]:
    """Mean over runs of each entry."""
    if values[0] and isinstance(values[0][0], list):
        return np.sum(values, axis=0).tolist()  # type: ignore[no-any-return]  # counts
    return [mean_numbers(column) for column in zip(*values, strict=True)]


def show(value: Any) -> str:
    """An interval, a number or nothing."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def markdown(record: Record) -> str:
    """The summary as text."""
    lines = ["# Annotator tendency (TAX-style, re-derived): arms, controls, bars", ""]
    lines += [f"{record['device']}, {record['date']}, {record['settings']}.", "", *record["reading"], ""]
    lines += ["| asked | found | bar | met |", "|---|---|---|---|"]
    lines += [f"| {bar['asked']} | {bar['found']} | {bar['bar']} | {bar['met']} |" for bar in record["bars"]]
    kinds = ("over", "under", "confuser", "smoother", "expert", "misser")
    head = ["level", "arm", "seeds", "consensus", "own versions", *(f"PG {kind}" for kind in kinds)]
    head += ["case-id", "region-id", "GED2", "parameters", "ms"]
    lines += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in record["rows"]:
        gains = [show(row.get("gain", {}).get(kind)) for kind in kinds]
        cells = [row["level"], f"{row['arm']} {row['variant']}".strip(), str(len(row["seeds"]))]
        cells += [show(row["consensus"]), show(row.get("own")), *gains, show(row.get("case_id"))]
        cells += [show(row.get("region_id")), show(row["ged"]), str(row["parameters"]), str(row["step_ms"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


READING = [
    "Dice is the mean of WT, TC and ET with a 95 % bootstrap interval over test cases, seeds averaged first; regions "
    "that a mask does not show count for nothing. Consensus is scored against the hidden truth, own versions against "
    "what each annotator drew. PG is what an annotator's own version gains over the consensus. GED2 (V-statistic) of "
    "the versions and the masks. Time of a step on a machine that was shared: compare with care.",
]


def write_table(outs: Sequence[Path], result: Path, cost: Path | None) -> None:
    """Write the summary of all finished runs as JSON and Markdown."""
    groups = read_runs(outs)
    if not groups:
        raise SystemExit(f"no finished run in {[str(out) for out in outs]}")
    order = sorted(groups, key=lambda key: (key[0] == "real", key[0], key[2], key[1] != "ours", key[1]))
    rows = [row_of(key, groups[key]) for key in order]
    first = next(iter(groups.values()))[0]["config"]
    rates = next((out / "rates.json" for out in outs if (out / "rates.json").exists()), None)
    costs = json.loads(cost.read_text(encoding="utf-8")) if cost else None
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "device": "two shared x86-64 cores, one thread per run",
        "versions": {name: version(name) for name in ("monai", "torch", "numpy")},
        "settings": {name: first[name] for name in SETTINGS},
        "rates": json.loads(rates.read_text(encoding="utf-8")) if rates else {},
        "reading": READING,
        "bars": bars_of(groups, {(row["level"], row["arm"], row["variant"]): row for row in rows}, costs),
        "cost": costs,
        "rows": rows,
    }
    write_summary(result, record, markdown(record))
