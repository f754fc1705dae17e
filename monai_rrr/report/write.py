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


"""One self-contained HTML file about a training, its baselines and its held-out cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_rrr.errors import DataError
from monai_rrr.metrics.statistics import Interval
from monai_rrr.report.case_picture import case_figure
from monai_rrr.report.case_view import load_case_view
from monai_rrr.report.html import save_html
from monai_rrr.report.page import PAGE
from monai_rrr.report.pictures import curves_figure, data_uri, scores_figure, style
from monai_rrr.report.record_text import describe_record
from monai_rrr.report.run_folder import Run, Score, merge_scores, read_run
from monai_rrr.report.summary import MethodSummary, compare, select, summarize
from monai_rrr.utils.enums import REGIONS

__all__ = ["write_report"]

REGION_NAMES = {"WT": "whole tumor", "TC": "tumor core", "ET": "enhancing tumor"}
METHOD_NAMES = {
    "full": "full method",
    "plain_cam": "plain CAM",
    "flair_otsu": "FLAIR Otsu",
    "flair_heuristic": "FLAIR heuristic",
    "empty": "empty mask",
    "supervised": "full supervision",
}
THRESHOLD_NAMES = {"tag_calibrated": "tag-calibrated", "label_free": "label-free", "oracle": "oracle (upper bound)"}
FIXED = ("flair_otsu", "flair_heuristic", "empty")
"""Baselines without a threshold of their own."""


def write_report(
    runs: Sequence[str | Path],
    cases: Sequence[Mapping[str, Any]],
    convention: str,
    out: str | Path,
    *,
    max_cases: int = 24,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``index.html``: results beside baselines, pictures of every held-out case, a viewer, the run record.

    Everything is inside the one file; it needs no network, and holds no path.

    Args:
        runs: output folders of evaluated trainings, that of the method to report first; the others stand beside it in
            tables and training curves.
        cases: datalist with at least the held-out cases, with labels.
        convention: label convention of masks and predictions.
        out: folder for ``index.html``, or an ``.html`` file.
        max_cases: pictures are made of so many cases, the worst ones.
        progress: called with (done, total) cases.

    Returns:
        The file.

    Raises:
        ValueError: When there is no run, or `max_cases` is less than 1.
        DataError: When a run has no scores, runs don't fit together, or a case or its results are missing.

    Example:
        >>> write_report(["demo/full", "demo/plain_cam"], cases, "brats2018", "report")  # doctest: +SKIP
        PosixPath('report/index.html')
    """
    if not runs or max_cases < 1:
        raise ValueError(f"expected at least one run and one case to show, got {len(runs)} and {max_cases}")
    trained = [read_run(folder) for folder in runs]
    rows = merge_scores(trained)
    own = trained[0].name
    listed = {str(case["case_id"]): case for case in cases}
    ranked = _worst_first(rows, own)
    missing = [case_id for case_id in ranked if case_id not in listed]
    if missing:
        message = f"expected all {len(ranked)} scored cases in the datalist, {len(missing)} are missing"
        raise DataError("case-missing", message, case_id=missing[0], hint="is it the data set of the evaluation?")
    with style():
        content = _numbers(rows, trained) | _pictures(trained[0], rows, ranked, listed, convention, max_cases, progress)
        curves = {_method(run.name): run.terms for run in trained if run.terms}
        content["curves"] = data_uri(curves_figure(curves)) if curves else ""
    content["records"] = [describe_record(_method(run.name), run.record) for run in trained]
    return save_html(PAGE, content, out)


def _numbers(rows: Sequence[Score], trained: Sequence[Run]) -> dict[str, Any]:
    methods = list(dict.fromkeys(run.name for run in trained))
    methods += [name for name in dict.fromkeys(str(row["method"]) for row in rows) if name not in (*methods, *FIXED)]
    own, count = methods[0], len({row["case_id"] for row in rows})
    tables = summarize(rows, methods)
    others = [(name, "tag_calibrated") for name in methods[1:]] + [(name, "label_free") for name in FIXED]
    head = next(summary for summary in tables[REGIONS[0]] if summary.threshold == "tag_calibrated")
    dice = head.scores["dice"]
    lead = f"{_method(own).capitalize()}: WT Dice {dice.mean:.2f}{_lead_interval(dice)} on {count} held-out cases."
    return {
        "title": "Tumor segmentation from slice tags",
        "lead": lead,
        "own": _method(own),
        "count": count,
        "names": REGION_NAMES,
        "present": {
            region: sum(row["truth_ml"] > 0 for row in select(rows, own, "tag_calibrated", region)) for region in tables
        },
        "tables": {region: [_line(summary, own) for summary in found] for region, found in tables.items()},
        "differences": [
            {
                "region": found.region,
                "other": _method(found.other),
                "threshold_text": _threshold(found.other, found.threshold),
                "mean": f"{found.interval.mean:+.3f}",
                "ends": _ends(found.interval, "+.3f"),
            }
            for found in compare(rows, own, others)
        ],
        "dice_picture": data_uri(scores_figure(_dice_by_method(rows, tables))),
    }


def _pictures(
    run: Run,
    rows: Sequence[Score],
    ranked: Sequence[str],
    listed: Mapping[str, Mapping[str, Any]],
    convention: str,
    max_cases: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    shown, middle = ranked[:max_cases], ranked[len(ranked) // 2]
    entries, viewer = [], ""
    wanted = list(dict.fromkeys((*shown, middle)))
    for index, case_id in enumerate(wanted):
        view = load_case_view(listed[case_id], run.cases, convention)
        if case_id in shown:
            found = [row for row in rows if _is(row, run.name, case_id)]
            control = all(row["truth_ml"] == 0 for row in found)
            picture = data_uri(case_figure(view), "jpeg")
            lines = [_case_line(row) for row in found]
            entries.append({"case_id": case_id, "control": control, "rows": lines, "picture": picture})
        if case_id == middle:
            viewer = _viewer(view)
        if progress is not None:
            progress(index + 1, len(wanted))
    text = f"Fused WT heatmap of case {middle}, the middle one by WT Dice. Click or drag to move. Sides are marked."
    return {"shown": entries, "hidden": len(ranked) - len(shown), "viewer": viewer, "viewer_text": text}


def _viewer(view: Any) -> str:
    # nilearn takes seconds to import
    from monai_rrr.report.viewer import viewer_html

    return viewer_html(view)


def _worst_first(rows: Sequence[Score], method: str) -> list[str]:
    found = select(rows, method, "tag_calibrated", REGIONS[0])
    return [str(row["case_id"]) for row in sorted(found, key=lambda row: (row["dice"], row["case_id"]))]


def _is(row: Score, method: str, case_id: str) -> bool:
    return (row["method"], row["threshold"], row["case_id"]) == (method, "tag_calibrated", case_id)


def _case_line(row: Score) -> list[str]:
    forms = {"dice": ".3f", "hd95": ".1f", "assd": ".1f", "truth_ml": ".1f", "pred_ml": ".1f"}
    return [row["region"], *("n/a" if row[name] is None else format(row[name], form) for name, form in forms.items())]


def _line(summary: MethodSummary, own: str) -> dict[str, Any]:
    forms = {"dice": ".3f", "hd95": ".1f", "assd": ".1f"}
    cells = []
    for name, form in forms.items():
        found = summary.scores.get(name)
        cells.append(None if found is None else (format(found.mean, form), _ends(found, form)))
    return {
        "method": _method(summary.method),
        "threshold": summary.threshold,
        "threshold_text": _threshold(summary.method, summary.threshold),
        "own": summary.method == own and summary.threshold == "tag_calibrated",
        "cells": cells,
        "missed": summary.missed,
        "invented": summary.invented,
    }


def _dice_by_method(
    rows: Sequence[Score], tables: Mapping[str, Sequence[MethodSummary]]
) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for region, summaries in tables.items():
        for one in summaries:
            label = _method(one.method)
            if one.method not in FIXED:
                label += f", {THRESHOLD_NAMES[one.threshold].split(' ')[0]}"
            values = [row["dice"] for row in select(rows, one.method, one.threshold, region)]
            found.setdefault(region, {})[label] = values
    return found


def _method(name: str) -> str:
    return METHOD_NAMES.get(name, name.replace("_", " "))


def _threshold(method: str, threshold: str) -> str:
    return "" if method in FIXED else THRESHOLD_NAMES[threshold]


def _lead_interval(found: Interval) -> str:
    return "" if found.cases == 1 else f" (95 % interval {found.low:.2f} to {found.high:.2f})"


def _ends(found: Interval, form: str) -> str:
    return "" if found.cases == 1 else f"[{format(found.low, form)}, {format(found.high, form)}]"
