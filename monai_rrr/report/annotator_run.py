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

"""What a training with several annotators and its evaluation left in a folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_rrr.errors import DataError
from monai_rrr.metrics.statistics import Interval, bootstrap_mean
from monai_rrr.report.run_folder import run_files, run_record, table_number, table_rows, training_terms
from monai_rrr.utils.enums import REGIONS
from monai_rrr.utils.files import safe_name

__all__ = ["AnnotatorRun", "is_annotator_run", "read_annotator_run"]

KEYS = ("case_id", "annotator", "region")
NUMBERS = ("dice", "gain", "ged")
CONSENSUS, TOGETHER = "consensus", "all"
"""Rows of ``metrics.csv`` that are no annotator's."""


@dataclass(frozen=True)
class AnnotatorRun:
    """One training with its evaluation.

    Args:
        annotators: ids, in the order of the table.
        scores: rows of ``metrics.csv``: case_id, annotator, region, and numbers (or None) by name.
        terms: name of a term -> (step, value) in the order of training; empty when there is no ``training.csv``.
        record: content of ``run.json``; empty when there is none.
        cases: folder with one folder of files per case.
    """

    annotators: tuple[str, ...]
    scores: tuple[Mapping[str, Any], ...]
    terms: Mapping[str, tuple[tuple[int, float], ...]]
    record: Mapping[str, Any]
    cases: Path

    @property
    def case_ids(self) -> list[str]:
        """Scored cases, in the order of the table."""
        return list(dict.fromkeys(str(row["case_id"]) for row in self.scores))

    def values(self, name: str, annotator: str, region: str) -> list[float]:
        """A score of all cases that have it."""
        found = (row for row in self.scores if (row["annotator"], row["region"]) == (annotator, region))
        return [float(row[name]) for row in found if row[name] is not None]

    def mean(self, name: str, annotator: str, region: str) -> Interval | None:
        """Mean over cases of a score with its interval; None where no case has it."""
        values = self.values(name, annotator, region)
        return bootstrap_mean(values) if values else None

    def why(self, case_id: str) -> dict[str, Any]:
        """Content of a case's ``why.json``.

        Raises:
            DataError: ``result-missing`` or ``json-invalid``.
        """
        path = self.file(case_id, "why.json")
        try:
            content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise DataError("json-invalid", f"expected JSON, got {error}", case_id=case_id, path=path) from error
        return content

    def file(self, case_id: str, name: str) -> Path:
        """A file of a case, such as ``who.nii.gz``.

        Raises:
            DataError: ``result-missing``.
        """
        stem = safe_name(case_id)
        path = self.cases / stem / f"{stem}_{name}"
        if not path.is_file():
            hint = "evaluation of the bundle writes it"
            raise DataError(
                "result-missing", "expected a result of this case, got no file", case_id=case_id, path=path, hint=hint
            )
        return path


def is_annotator_run(folder: str | Path) -> bool:
    """Tell whether a run is one of several annotators, by the columns of its scores.

    Raises:
        DataError: ``metrics-missing``.
    """
    table, _, _ = run_files(folder)
    with table.open(newline="", encoding="utf-8") as file:
        return "annotator" in (csv.DictReader(file).fieldnames or ())


def read_annotator_run(folder: str | Path) -> AnnotatorRun:
    """Read the output folder of a bundle with several annotators; see :func:`~monai_rrr.report.read_run`.

    A bundle that has heatmaps as well writes their scores to ``metrics.csv``; those of annotators are beside it in
    ``annotators.csv``, and the files of who and why in ``annotators``. Cases that nobody drew are left out.

    Raises:
        DataError: When there is no table of scores, it holds no annotator, or a file can't be used.
    """
    table, training, record = run_files(folder)
    cases = table.parent / "cases"
    if (beside := table.with_name("annotators.csv")).is_file():
        table, cases = beside, table.parent / "annotators"
    scores: list[dict[str, Any]] = []
    for line, row in enumerate(table_rows(table, (*KEYS, *NUMBERS)), start=2):
        if row["region"] not in REGIONS:
            message = f"line {line}: expected a region of {REGIONS}, got {row['region']!r}"
            raise DataError("metrics-row", message, path=table)
        numbers = {name: table_number(row[name], table, line, name) for name in NUMBERS}
        scores.append({name: row[name] for name in KEYS} | numbers)
    drawn = {row["case_id"] for row in scores if row["gain"] is not None}
    scores = [row for row in scores if row["case_id"] in drawn]
    names = tuple(dict.fromkeys(str(row["annotator"]) for row in scores if row["gain"] is not None))
    if not names:
        raise DataError("metrics-empty", "expected scores of at least one annotator, got none", path=table)
    return AnnotatorRun(names, tuple(scores), training_terms(training), run_record(record), cases)


def largest_first(run: AnnotatorRun, whys: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Cases by the volume in which annotators disagree."""
    return sorted(run.case_ids, key=lambda case_id: (-whys[case_id]["disagreement"]["volume_ml"], case_id))
