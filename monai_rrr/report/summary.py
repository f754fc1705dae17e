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


"""The numbers of a report: means with intervals, paired differences, empty regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monai_rrr.metrics.segmentation import SCORES
from monai_rrr.metrics.statistics import Interval, bootstrap_mean, paired_difference
from monai_rrr.utils.enums import REGIONS

__all__ = ["Difference", "MethodSummary", "compare", "summarize"]

THRESHOLDS = ("tag_calibrated", "label_free", "oracle")


@dataclass(frozen=True)
class MethodSummary:
    """Scores of one method at one threshold in one region.

    Args:
        method: name of the method.
        threshold: ``"tag_calibrated"``, ``"label_free"`` or ``"oracle"``.
        scores: score -> mean over cases with its 95 % interval; only what was computed.
        missed: cases whose region is there and whose prediction is empty.
        invented: cases whose region is absent and whose prediction is not empty.
    """

    method: str
    threshold: str
    scores: dict[str, Interval]
    missed: int
    invented: int


@dataclass(frozen=True)
class Difference:
    """Dice of one method minus that of another over the same cases."""

    region: str
    method: str
    other: str
    threshold: str
    interval: Interval


def summarize(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, list[MethodSummary]]:
    """Region -> one entry per method and threshold, trained methods first.

    Args:
        rows: scores of :func:`~monai_rrr.report.run_folder.merge_scores`.
        methods: names of the trained methods, in the order in which they are shown.

    Example:
        >>> row = {"case_id": "a", "method": "full", "threshold": "oracle", "region": "WT", "dice": 0.5, "hd95": None,
        ...        "assd": None, "truth_ml": 1.0, "pred_ml": 0.0}
        >>> found = summarize([row, {**row, "case_id": "b", "dice": 0.7}], ["full"])["WT"][0]
        >>> print(found.scores["dice"], found.missed)
        0.600 [0.500, 0.700] 2
    """
    others = dict.fromkeys(str(row["method"]) for row in rows if row["method"] not in methods)
    tables: dict[str, list[MethodSummary]] = {}
    for region in REGIONS:
        for method in (*methods, *others):
            for threshold in THRESHOLDS:
                found = select(rows, method, threshold, region)
                if found:
                    tables.setdefault(region, []).append(_summary(found, method, threshold))
    return tables


def compare(rows: Sequence[dict[str, Any]], method: str, others: Sequence[tuple[str, str]]) -> list[Difference]:
    """Paired differences in Dice, `method` at its tag-calibrated threshold minus each other method, by region.

    Args:
        rows: scores.
        method: the method that is better where a difference is positive.
        others: method and threshold to compare with; those without scores in a region are left out.
    """
    differences = []
    for region in REGIONS:
        ours = {row["case_id"]: row["dice"] for row in select(rows, method, "tag_calibrated", region)}
        for other, threshold in others:
            theirs = {row["case_id"]: row["dice"] for row in select(rows, other, threshold, region)}
            if ours and set(ours) == set(theirs):
                pairs = [(ours[case], theirs[case]) for case in sorted(ours)]
                interval = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
                differences.append(Difference(region, method, other, threshold, interval))
    return differences


def select(rows: Sequence[dict[str, Any]], method: str, threshold: str, region: str) -> list[dict[str, Any]]:
    """Rows of one method, threshold and region, in the order of the cases."""
    wanted = (method, threshold, region)
    return [row for row in rows if (row["method"], row["threshold"], row["region"]) == wanted]


def _summary(rows: Sequence[dict[str, Any]], method: str, threshold: str) -> MethodSummary:
    scores = {}
    for name in SCORES:
        values = [row[name] for row in rows if row[name] is not None]
        if len(values) == len(rows):
            scores[name] = bootstrap_mean(values)
    missed = sum(row["truth_ml"] > 0 and row["pred_ml"] == 0 for row in rows)
    invented = sum(row["truth_ml"] == 0 and row["pred_ml"] > 0 for row in rows)
    return MethodSummary(method, threshold, scores, missed, invented)
