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

"""The bars of the method's card, and what the runs of ``annotator_tendency.py`` found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_rrr.metrics import paired_difference

__all__ = ["bars_of", "per_case"]

PARTS = {
    "no_tie": "no tie",
    "shuffled": "shuffled tie",
    "kernel_is_prototype": "the prototype is the kernel",
    "random_kernels": "kernels start at random",
    "all_voxels": "bank from all voxels, means",
    "no_push": "means in place of real patches",
    "no_average": "no moving average",
    "no_center": "no sum to zero",
    "no_sdf": "no signed distance",
    "kernel3": "kernels of 3x3x3",
    "slots1": "one kernel per class",
    "slots8": "eight kernels per class",
    "stride1": "full resolution",
    "em": "consensus by EM",
    "gamma_lr1": "gamma at the rate of the rest",
}
HABITS = {"over": 0.05, "under": 0.05, "confuser": 0.05, "expert": -0.005}


def per_case(records: Sequence[Any], score: str) -> NDArray[np.float64]:
    """A score of every case, mean over seeds: ``N ...``, NaN where it is None; folds of a seed are put together."""
    by_seed: dict[int, dict[str, Any]] = defaultdict(dict)
    for record in records:
        by_seed[record["config"]["seed"]].update(zip(record["case_id"], record[score], strict=True))
    cases = sorted(set.intersection(*(set(found) for found in by_seed.values())))
    return np.array([[found[case] for case in cases] for found in by_seed.values()], np.float64).mean(0)


def bars_of(groups: Mapping[Any, Any], rows: Mapping[Any, Any], cost: Any) -> list[dict[str, Any]]:
    """Each bar: what is asked, what was found, the limit, and whether it is met; bars without runs are left out."""
    found: list[dict[str, Any]] = []

    def add(asked: str, value: Any, bar: str, met: bool | None) -> None:
        found.append({"asked": asked, "found": value, "bar": bar, "met": {True: "yes", False: "no"}.get(met, "")})

    ours = rows.get(("L1", "ours", ""))
    if ours is None:
        return found
    for kind, least in HABITS.items():
        value = ours["gain"][kind]
        add(f"PG of {kind}", text(value), f">= {least}", value[0] >= least)
        add(f"- a perfect version over the votes, {kind}", text(ours["ceiling"][kind]), "", None)
    for level in sorted({key[0] for key in rows}):
        compared(groups, level, add)
    add("case-id", f"{ours['case_id']:.3f}", ">= 0.95", ours["case_id"] >= 0.95)
    alike = ours.get("case_id_alike")
    add("- expert and misser, who draw the same here, taken as one", f"{alike:.3f}", "", None)
    region, chance = ours.get("region_id", 0.0), 1 / len(ours["kinds"])
    add("region-id", f"{region:.3f}", ">= 0.6", region >= 0.6)
    add("region-id over chance", f"{region / chance:.2f} x {chance:.3f}", ">= 2", region >= 2 * chance)
    same = f"{ours.get('region_id_or_same', 0.0):.3f}, chance {ours.get('region_chance', 0.0):.3f}"
    add("- or one who drew the same there", same, "", None)
    for name in ("set_accuracy", "set_accuracy_random"):
        value, what = ours[name], ", random prototypes" if name.endswith("random") else ""
        add(f"- voxel by voxel, as a set{what}", f"{value['accuracy']:.3f}, {value['lift']:.2f} x chance", "", None)
    offsets(ours, add)
    if cost:
        for name in ("ours, stride 1", "ours, stride 2"):
            row = cost["rows"][name]
            share, slower = row["parameters_over_one"], row["time_over_one"]
            add(f"parameters over one network, {name}", f"{100 * share:.2f} %", "< 5 %", share < 0.05)
            add(f"time of a step over one network, {name}", f"{100 * slower:.0f} %", "< 15 %", slower < 0.15)
            inference = row["time_of_inference_over_one"]
            add(f"- time of a forward pass, {name}", f"{100 * inference:.0f} %", "", None)
    controls(rows, ours, add)
    sparse(groups, rows, add)
    ablations(groups, rows, add)
    return found


def compared(groups: Mapping[Any, Any], level: str, add: Any) -> None:
    """Ours against one network on the votes, and against plain heads."""
    ours, vote, heads = (groups.get((level, arm, "")) for arm in ("ours", "vote", "heads"))
    if ours and vote:
        value = difference(ours, vote, "consensus")
        add(f"{level}: consensus minus vote + net", text(value), ">= 0" if level == "L1" else "", met(value, level, 0))
    if ours and heads:
        value = difference(ours, heads, "dice")
        bar = ">= -0.005" if level == "L1" else ""
        add(f"{level}: own versions minus plain heads", text(value), bar, met(value, level, -0.005))


def met(value: Sequence[float], level: str, least: float) -> bool | None:
    """Whether a bar is met; bars are those of L1."""
    return value[0] >= least if level == "L1" else None


def offsets(ours: Mapping[str, Any], add: Any) -> None:
    """Recovery of the habits that are a shift of the contour, against the expert's."""
    found, expert = ours["tendency"], ours["kinds"].index("expert")
    for kind in ("over", "under"):
        r = ours["kinds"].index(kind)
        moved = {name: found[f"{name}_mm"][r] - found[f"{name}_mm"][expert] for name in ("predicted", "drawn", "true")}
        text_ = ", ".join(f"{name} {value:+.2f} mm" for name, value in moved.items())
        add(f"- shift of the contour of {kind} against the expert's", text_, "", None)


def difference(a: Sequence[Any], b: Sequence[Any], score: str) -> list[float]:
    """Paired difference over cases, over the seeds and folds that both have."""
    shared = set.intersection(*({part_of(record) for record in records} for records in (a, b)))
    values = [per_case([r for r in records if part_of(r) in shared], score) for records in (a, b)]
    first, second = (np.nanmean(value.reshape(len(value), -1), axis=1) for value in values)
    found = paired_difference(first, second)
    return [round(v, 4) for v in (found.mean, found.low, found.high)]


def part_of(record: Mapping[str, Any]) -> tuple[int, int | None]:
    """Seed and fold of a run."""
    return record["config"]["seed"], record["config"].get("fold")


def controls(rows: Mapping[Any, Any], ours: Mapping[str, Any], add: Any) -> None:
    """Controls of the method."""
    row = rows.get(("L1", "ours", "permuted"))
    if row:
        for kind in HABITS:
            value = row["gain"][kind]
            add(f"permuted names: PG of {kind}", text(value), "+- 0.01", abs(value[0]) <= 0.01)
    row = rows.get(("L1", "ours", "duplicate"))
    if row:
        r, s = row["kinds"].index("over"), row["kinds"].index("duplicate")
        value = row["departure_cosine"][r][s]
        others = [row["departure_cosine"][r][k] for k in range(len(row["kinds"])) if k not in (r, s)]
        asked = "duplicate: cosine of the departures of the two"
        add(asked, f"{value:.3f} (others {min(others):.2f} to {max(others):.2f})", "> 0.9", value > 0.9)
    row = rows.get(("L1", "ours", "blank"))
    if row:
        blank, rest = row["rho"][-1], row["rho"][:-1]
        add("blank: rho by EM", f"{blank:.3f} (others {min(rest):.3f} to {max(rest):.3f})", "lowest", blank < min(rest))
    for name, asked in (("purity", "purity"), ("deletion", "effect of deletion")):
        true, random = ours["why"].get(name), ours["why_random"].get(name)
        if true is not None and random is not None:
            add(f"random prototypes: {asked}", f"{random:.3f} (ours {true:.3f})", "below ours", random < true)
    other = ours["why"].get("deletion_other")
    if other:
        value = ours["why"]["deletion"]
        add(
            "deletion: best prototype's kernel against another",
            f"{value:.3f} against {other:.3f}",
            "above",
            value > other,
        )
    row = rows.get(("L1", "ours", "shuffled"))
    if row:
        value, true = row["why"].get("cosine"), ours["why"].get("cosine")
        add(
            "shuffled tie: cosine of kernel and prototype", f"{value:.3f} (ours {true:.3f})", "below ours", value < true
        )


def sparse(groups: Mapping[Any, Any], rows: Mapping[Any, Any], add: Any) -> None:
    """Relative drop of the own versions from dense to few masks per case."""
    for arm in ("ours", "heads", "cm_corrected"):
        dense = groups.get(("L1", arm, ""))
        for observed in ("3of6", "1of6", "1of6_em"):
            row = rows.get(("L1", arm, observed))
            if dense and row:
                minus = difference(groups["L1", arm, observed], dense, "dice")[0]
                own = row["own"][0]
                all_ = own - minus  # of the same seeds
                gains = ", ".join(f"{kind} {row['gain'][kind][0]:+.3f}" for kind in ("over", "under", "confuser"))
                value = f"{own:.3f} after {all_:.3f}, {100 * (own / all_ - 1):+.1f} %; PG {gains}"
                kept = row["why"].get("prototypes") if "why" in row else None
                value += "" if kept is None else f"; {kept:.0f} prototypes"
                add(f"{observed.replace('of6', ' of 6 masks per case').replace('_em', ', EM')}, {arm}", value, "", None)
    for arm in ("ours", "heads"):
        row = rows.get(("L5", arm, ""))
        for count, scores in (row or {}).get("newcomer", {}).items():
            value = f"PG {text(scores['gain'])} of {scores['ceiling'][0]:.3f}, {scores['added']} numbers"
            add(f"new annotator (under) with {count} cases, {arm}", value, "", None)


def ablations(groups: Mapping[Any, Any], rows: Mapping[Any, Any], add: Any) -> None:
    """Each part taken away or exchanged: own versions minus those of the method, over the seeds that both have."""
    whole = groups["L1", "ours", ""]
    for name, asked in PARTS.items():
        row, records = rows.get(("L1", "ours", name)), groups.get(("L1", "ours", name))
        if row and records:
            why = ", ".join(
                f"{key} {row['why'][key]:.2f}" for key in ("cosine", "purity", "deletion_wins") if key in row["why"]
            )
            gains = ", ".join(f"{kind} {row['gain'][kind][0]:+.3f}" for kind in ("over", "under", "confuser"))
            value = f"{text(difference(records, whole, 'dice'))}; PG {gains}; {why}; {len(row['seeds'])} seeds"
            add(f"{asked}: own versions minus the method's", value, "", None)
    for record in groups.get(("L1", "ours", "calibrated"), ()):
        found, seed = record["calibration"], record["config"]["seed"]
        parts = [
            f"{score.replace('_', ' ')} {np.mean(found['before'][score]):.4f} to {np.mean(found['after'][score]):.4f}"
            for score in ("cross_entropy", "calibration_error")
        ]
        low, high = min(found["temperatures"]), max(found["temperatures"])
        add(f"temperatures, seed {seed}", f"{', '.join(parts)}; {low:.2f} to {high:.2f}", "", None)


def text(value: Sequence[float]) -> str:
    """An interval."""
    return f"{value[0]:+.4f} [{value[1]:+.4f}, {value[2]:+.4f}]"
