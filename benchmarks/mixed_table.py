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

"""What the runs of ``mixed_supervision.py`` say: Dice of each arm, paired differences, the bars, missing modalities."""

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
from mixed_arms import ARMS
from numpy.typing import NDArray
from summary_file import rounded, write_summary

from monai_rrr.metrics import Interval, bootstrap_mean, paired_difference
from monai_rrr.utils.enums import REGIONS

__all__ = ["MISSING", "write_table"]

Record: TypeAlias = dict[str, Any]
FULL = "t1,t1c,t2,flair"
MISSING = "missing"
"""Name of the files that hold the arm ``mixed``, scored with modalities missing."""


def read_runs(out: Path) -> dict[str, list[Record]]:
    """Finished runs of each arm, by seed, and those with modalities missing."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for file in sorted(out.glob("*_seed*.json")):
        groups[file.stem.rpartition("_seed")[0]].append(json.loads(file.read_text(encoding="utf-8")))
    return {arm: groups[arm] for arm in (*ARMS, MISSING) if arm in groups}


def dice_of(records: Sequence[Record], result: str, region: int, subset: str = FULL) -> NDArray[np.float64]:
    """Dice of every case, ``seeds x cases``; cases in one order."""
    tables = [record["dice"][subset][result] for record in records]
    return np.array([[table[case_id][region] for case_id in sorted(table)] for table in tables])


def difference(a: Sequence[Record], b: Sequence[Record], region: int) -> Interval | None:
    """Paired difference of the results of two arms, over the seeds that both have."""
    first, second = of_common_seeds(a, b)
    if not first:
        return None
    return paired_difference(
        dice_of(first, ARMS[first[0]["config"]["arm"]].result, region),
        dice_of(second, ARMS[second[0]["config"]["arm"]].result, region),
    )


def of_common_seeds(a: Sequence[Record], b: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Runs of two arms with the seeds that both have."""
    seeds = {seed_of(record) for record in a} & {seed_of(record) for record in b}
    return [r for r in a if seed_of(r) in seeds], [r for r in b if seed_of(r) in seeds]


def seed_of(record: Record) -> int:
    """Seed of a run."""
    return int(record["config"]["seed"])


def row_of(arm: str, groups: dict[str, list[Record]]) -> Record:
    """What there is to say of an arm."""
    records, what = groups[arm], ARMS[arm]
    table = records[0]["dice"][FULL][what.result]
    tumor = np.array([case_id in set(records[0]["tumor"]) for case_id in sorted(table)])
    wt = dice_of(records, what.result, 0)
    row: Record = {
        "arm": arm,
        "seeds": [seed_of(record) for record in records],
        "result": what.result,
        **{name: rounded(bootstrap_mean(dice_of(records, what.result, k))) for k, name in enumerate(REGIONS)},
        "WT of cases with tumor": rounded(bootstrap_mean(wt[:, tumor])),
        "controls left clean": round(float(wt[:, ~tumor].mean()), 3) if not tumor.all() else None,
        "WT by seed": [round(float(value), 4) for value in wt.mean(1)],
        "step_ms": round(1000 * statistics.median(record["step_seconds"] for record in records)),
        "supervision": records[0]["supervision"],
    }
    if what.tags and what.result == "consensus":
        row["gated"] = {n: rounded(bootstrap_mean(dice_of(records, "gated", k))) for k, n in enumerate(REGIONS)}
    if what.tags:
        row["heatmap"] = {n: rounded(bootstrap_mean(dice_of(records, "heatmap", k))) for k, n in enumerate(REGIONS)}
    if arm != "mixed" and "mixed" in groups:
        for k, name in enumerate(REGIONS):
            found = difference(records, groups["mixed"], k)
            row[f"minus mixed, {name}"] = found and rounded(found)
        if what.tags:
            pair = [[r for r in group if seed_of(r) in row["seeds"]] for group in (records, groups["mixed"])]
            if len(pair[0]) == len(pair[1]):
                row["heatmap minus mixed, WT"] = rounded(
                    paired_difference(*(dice_of(group, "heatmap", 0) for group in pair))
                )
    return row


def bars_of(groups: dict[str, list[Record]]) -> list[Record]:
    """What was asked, and what came out."""
    bars: list[Record] = []
    for arm in ("mixed", "mixed_batch_4"):
        own = groups.get(arm, [])
        if "masks" in groups and own and (found := difference(own, groups["masks"], 0)):
            met = found.mean >= 0.05
            bars.append({"asked": f"WT, {arm} minus masks: at least 0.05", "found": rounded(found), "met": met})
        first, second = of_common_seeds(own, groups.get("all", []))
        if first:
            share = float(dice_of(first, "consensus", 0).mean() / dice_of(second, "consensus", 0).mean())
            bars.append({"asked": f"WT, {arm} over all: at least 0.9", "found": round(share, 4), "met": share >= 0.9})
    return bars


def subsets_of(records: Sequence[Record]) -> list[Record]:
    """Dice of the network with modalities missing when it is asked, all of them first."""
    whole = dice_of(records, "consensus", 0)
    rows = []
    for subset in records[0]["dice"]:
        row: Record = {"modalities": subset, "seeds": len(records)}
        for result in ("consensus", "heatmap"):
            row[result] = {
                n: rounded(bootstrap_mean(dice_of(records, result, k, subset))) for k, n in enumerate(REGIONS)
            }
        if subset != FULL:
            row["minus four, WT"] = rounded(paired_difference(dice_of(records, "consensus", 0, subset), whole))
        rows.append(row)
    return rows


def show(value: Any) -> str:
    """An interval, a number or nothing."""
    if value is None:
        return ""
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]" if isinstance(value, list) else f"{value:g}"


READING = (
    "Dice with the truth and 95 % bootstrap interval over all test cases, seeds averaged first; a control counts 1 "
    "where nothing is found, else 0. The result is the label map of the consensus, and where there were no masks the "
    "heatmap at the threshold that the tags chose; gated: the label map on slices where this heatmap shows the region. "
    "Differences are paired over cases, over the seeds that both have."
)


def markdown(record: Record) -> str:
    """The summary as text."""
    lines = ["# Mixed supervision", "", f"{record['device']}, {record['date']}, {record['settings']}.", "", READING, ""]
    lines += ["| asked | found | met |", "|---|---|---|"]
    lines += [f"| {bar['asked']} | {show(bar['found'])} | {bar['met']} |" for bar in record["bars"]]
    head = ["arm", "seeds", "tags", "masks", *REGIONS, "WT, tumors", "controls left clean", "minus mixed, WT"]
    head += ["gated WT", "heatmap WT", "heatmap minus mixed, WT", "CPU ms per step"]
    lines += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in record["rows"]:
        has = row["supervision"]
        cells = [row["arm"], len(row["seeds"]), has["tags"], has["annotations"], *(show(row[name]) for name in REGIONS)]
        cells += [show(row["WT of cases with tumor"]), show(row["controls left clean"])]
        cells += [
            show(row.get("minus mixed, WT")),
            *(show(row.get(name, {}).get("WT")) for name in ("gated", "heatmap")),
        ]
        cells += [show(row.get("heatmap minus mixed, WT")), row["step_ms"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if rows := record["missing"]:
        head = ["modalities", *REGIONS, "minus four, WT", *(f"heatmap {name}" for name in REGIONS)]
        lines += ["", f"Modalities that are there at inference, arm mixed, {rows[0]['seeds']} seeds:", ""]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in rows:
            cells = [row["modalities"], *(show(row["consensus"][name]) for name in REGIONS)]
            cells += [show(row.get("minus four, WT")), *(show(row["heatmap"][name]) for name in REGIONS)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_table(out: Path, result: Path) -> None:
    """Write the summary of all finished runs as JSON and Markdown."""
    groups = read_runs(out)
    if not groups:
        raise SystemExit(f"no finished run in {out}")
    first = next(iter(groups.values()))[0]
    missing = groups.pop(MISSING, [])
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "device": "two shared x86-64 cores, one thread per run",
        "versions": {name: version(name) for name in ("monai", "torch", "numpy")},
        "settings": {"steps": first["config"]["steps"], **first["config"]["set"]},
        "test_cases": {"all": len(first["dice"][FULL]["heatmap"]), "with tumor": len(first["tumor"])},
        "bars": bars_of(groups),
        "rows": [row_of(arm, groups) for arm in groups],
        "missing": subsets_of(missing) if missing else [],
    }
    write_summary(result, record, markdown(record))
