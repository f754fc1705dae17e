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


"""What a training and its evaluation left in a folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_rrr.errors import DataError
from monai_rrr.metrics.segmentation import SCORES
from monai_rrr.utils.enums import REGIONS

__all__ = ["Run", "merge_scores", "read_run", "run_files", "run_record", "table_number", "table_rows", "training_terms"]

KEYS = ("case_id", "method", "threshold", "region")
Score = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training with its evaluation.

    Args:
        name: method in the table of scores that is this run's own, not a baseline.
        scores: rows of ``metrics.csv``: case_id, method, threshold, region, and numbers (or None) by name.
        terms: name of a term -> (step, value) in the order of training; empty when there is no ``training.csv``.
        record: content of ``run.json``; empty when there is none.
        cases: folder with one folder of NIfTI files per case.
    """

    name: str
    scores: tuple[Score, ...]
    terms: Mapping[str, tuple[tuple[int, float], ...]]
    record: Mapping[str, Any]
    cases: Path


def read_run(folder: str | Path) -> Run:
    """Read the output folder of a bundle: ``metrics.csv`` in it or in its ``eval``, training.csv, run.json.

    Args:
        folder: ``output_dir`` of the training, or that of the evaluation.

    Raises:
        DataError: When there is no table of scores, or a file can't be used.
    """
    table, training, record = run_files(folder)
    scores = _scores(table)
    return Run(
        name=_own_method(scores, table),
        scores=scores,
        terms=training_terms(training),
        record=run_record(record),
        cases=table.parent / "cases",
    )


def run_files(folder: str | Path) -> tuple[Path, Path | None, Path | None]:
    """Find ``metrics.csv``, ``training.csv`` and ``run.json`` of a run; see :func:`read_run`.

    Raises:
        DataError: ``metrics-missing``.
    """
    folder = Path(folder)
    table = next((path for path in (folder / "metrics.csv", folder / "eval" / "metrics.csv") if path.is_file()), None)
    if table is None:
        hint = "evaluate the run first: the bundle's evaluate.yaml writes it"
        raise DataError(
            "metrics-missing", "expected metrics.csv, or eval/metrics.csv, got neither", path=folder, hint=hint
        )
    parents = (folder, table.parent, table.parent.parent if table.parent.name == "eval" else folder)
    training = next((p / "training.csv" for p in parents if (p / "training.csv").is_file()), None)
    record = next((p / "run.json" for p in parents if (p / "run.json").is_file()), None)
    return table, training, record


def merge_scores(runs: Sequence[Run]) -> list[Score]:
    """Rows of all runs, each once.

    Raises:
        DataError: When two runs have different scores under one name, or not the same cases.
    """
    merged: dict[tuple[str, ...], Score] = {}
    for run in runs:
        for row in run.scores:
            key = tuple(str(row[name]) for name in KEYS)
            known = merged.setdefault(key, row)
            if any(known[name] != row[name] for name in SCORES):
                message = f"expected one score of {', '.join(key)}, got {known['dice']} and {row['dice']} (Dice)"
                raise DataError("method-twice", message, hint="evaluate each run under a name of its own (method)")
    first = {str(row["case_id"]) for row in runs[0].scores}
    for run in runs[1:]:
        other = {str(row["case_id"]) for row in run.scores}
        if other != first:
            message = f"expected the same {len(first)} held-out cases in all runs, '{run.name}' has {len(other)}"
            raise DataError("cases-differ", f"{message}, {len(first & other)} of them in common")
    return list(merged.values())


def _scores(path: Path) -> tuple[Score, ...]:
    rows = table_rows(path, (*KEYS, "dice", "truth_ml", "pred_ml"))
    scores = []
    for line, row in enumerate(rows, start=2):
        if row["region"] not in REGIONS:
            raise DataError(
                "metrics-row", f"line {line}: expected a region of {REGIONS}, got {row['region']!r}", path=path
            )
        score: Score = {name: row[name] for name in KEYS}
        for name in (*SCORES, "truth_ml", "pred_ml", "level", "min_area_mm2"):
            score[name] = table_number(row.get(name), path, line, name)
        scores.append(score)
    if not scores:
        raise DataError("metrics-empty", "expected at least one row, got none", path=path)
    return tuple(scores)


def table_rows(path: Path, needed: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file.

    Raises:
        DataError: ``table-columns``, when one that is needed is missing.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError("table-columns", f"expected the columns {missing}, got {reader.fieldnames}", path=path)
        return list(reader)


def table_number(text: str | None, path: Path, line: int, name: str) -> float | None:
    """Read a cell; None where it is empty."""
    if text in (None, ""):
        return None
    try:
        return float(str(text))
    except ValueError:
        raise DataError("table-value", f"line {line}: expected a number in {name}, got {text!r}", path=path) from None


def _own_method(scores: Sequence[Score], path: Path) -> str:
    for row in scores:
        if row["threshold"] == "tag_calibrated":
            return str(row["method"])
    found = sorted({str(row["threshold"]) for row in scores})
    raise DataError("metrics-method", f"expected a method at the threshold tag_calibrated, got {found}", path=path)


def training_terms(path: Path | None) -> dict[str, tuple[tuple[int, float], ...]]:
    """Values of every term in the order of training; none without a file."""
    curves: dict[str, list[tuple[int, float]]] = {}
    if path is None:
        return {}
    for line, row in enumerate(table_rows(path, ("step", "term", "value")), start=2):
        step, value = table_number(row["step"], path, line, "step"), table_number(row["value"], path, line, "value")
        if step is not None and value is not None:
            curves.setdefault(row["term"], []).append((int(step), value))
    return {name: tuple(points) for name, points in curves.items()}


def run_record(path: Path | None) -> dict[str, Any]:
    """Content of ``run.json``; empty without a file."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError("json-invalid", f"expected JSON, got {error}", path=path) from error
    if not isinstance(content, dict):
        raise DataError("json-invalid", f"expected an object, got {type(content).__name__}", path=path)
    return content
