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

"""One self-contained HTML file about a training with several annotators: who, why, and what everyone tends to do."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from monai_rrr.errors import DataError
from monai_rrr.metrics.statistics import Interval
from monai_rrr.report.annotator_card import annotator_cards
from monai_rrr.report.annotator_picture import annotator_figure
from monai_rrr.report.annotator_report_page import ANNOTATOR_REPORT
from monai_rrr.report.annotator_run import CONSENSUS, TOGETHER, AnnotatorRun, largest_first, read_annotator_run
from monai_rrr.report.annotator_view import AnnotatorView, load_annotator_view
from monai_rrr.report.html import save_html
from monai_rrr.report.pictures import curves_figure, data_uri, scores_figure, style
from monai_rrr.report.record_text import describe_record
from monai_rrr.report.write_annotators import annotator_section
from monai_rrr.transforms.vote_share import vote_share
from monai_rrr.utils.enums import REGIONS

__all__ = ["write_annotator_report"]

REGIONS_SHOWN = 3
"""Regions of a case whose pictures are in the page; its ``why.html`` has all."""


def write_annotator_report(
    run: str | Path,
    cases: Sequence[Mapping[str, Any]],
    convention: str,
    out: str | Path,
    *,
    max_cases: int = 24,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``index.html``: scores, report cards as drawn and as predicted, and who and why of held-out cases.

    Everything is inside the one file; it needs no network, and holds no path.

    Args:
        run: output folder of a training with several annotators and its evaluation.
        cases: datalist with at least the held-out cases, with ``annotations``.
        convention: label convention of masks and predictions.
        out: folder for ``index.html``, or an ``.html`` file.
        max_cases: pictures are made of so many cases, those with most disagreement.
        progress: called with (done, total) cases.

    Returns:
        The file.

    Raises:
        ValueError: When ``max_cases`` is less than 1.
        DataError: When the run has no scores, or a case or its results are missing.
    """
    if max_cases < 1:
        raise ValueError(f"expected at least one case to show, got {max_cases}")
    trained = read_annotator_run(run)
    listed = {str(case["case_id"]): case for case in cases}
    missing = [case_id for case_id in trained.case_ids if case_id not in listed]
    if missing:
        message = f"expected all {len(trained.case_ids)} scored cases in the datalist, {len(missing)} are missing"
        raise DataError("case-missing", message, case_id=missing[0], hint="is it the section of the evaluation?")
    whys = {case_id: trained.why(case_id) for case_id in trained.case_ids}
    order = largest_first(trained, whys)
    drawn, predicted, shown = [], [], []
    for index, case_id in enumerate(order):
        view = load_annotator_view(trained, listed[case_id], convention)
        votes = vote_share(torch.from_numpy(view.drawn)[None])[0].argmax(0).numpy()
        drawn.append(view.compared(view.drawn, votes))
        predicted.append(view.compared(view.versions, view.consensus))
        if index < max_cases:
            shown.append(_case(trained, view, whys[case_id]))
        if progress is not None:
            progress(index + 1, len(order))
    rho = [whys[order[0]]["rho"].get(name, float("nan")) for name in trained.annotators]
    content = _numbers(trained) | {
        "drawn": annotator_section(
            annotator_cards(drawn, trained.annotators, rho), "Habits as drawn, against the votes of all", "drawn"
        ),
        "predicted": annotator_section(
            annotator_cards(predicted, trained.annotators, rho),
            "Habits as predicted, against the consensus of the network",
            "predicted",
        ),
        "shown": shown,
        "hidden": len(order) - len(shown),
        "record": describe_record("", trained.record),
    }
    with style():
        content["curves"] = data_uri(curves_figure({"training": trained.terms})) if trained.terms else ""
    return save_html(ANNOTATOR_REPORT, content, out)


def _case(run: AnnotatorRun, view: AnnotatorView, why: Mapping[str, Any]) -> dict[str, Any]:
    with style():
        picture = data_uri(annotator_figure(view), "jpeg")
    regions = why["regions"]
    return {
        "case_id": view.case_id,
        "volume": f"{why['disagreement']['volume_ml']:.1f}",
        "picture": picture,
        "regions": [_region(run, view.case_id, region) for region in regions[:REGIONS_SHOWN]],
        "more": max(len(regions) - REGIONS_SHOWN, 0),
    }


def _region(run: AnnotatorRun, case_id: str, region: Mapping[str, Any]) -> dict[str, Any]:
    shares = sorted(region["who"].items(), key=lambda item: -item[1])
    return {
        "number": region["region"],
        "volume": f"{region['volume_mm3'] / 1000:.2f}",
        "sentence": region["sentence"],
        "counterfactual": region["counterfactual"],
        "who": ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares if share >= 0.005),
        "picture": _jpeg(run.file(case_id, f"why_{region['region']}.png")),
    }


def _jpeg(path: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(buffer, "jpeg", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _numbers(run: AnnotatorRun) -> dict[str, Any]:
    count = len(run.case_ids)
    rows = []
    for name in run.annotators:
        cells = []
        for region in REGIONS:
            own = _cell(run.mean("dice", name, region), ".2f") | {"ends": ""}  # the picture shows the cases
            cells += [own, _cell(run.mean("gain", name, region), "+.3f")]
        rows.append({"name": name, "cells": cells})
    lines = [
        ("consensus, Dice with the truth", "dice", CONSENSUS),
        ("distance of all versions from all masks (GED², 0 is best)", "ged", TOGETHER),
    ]
    together = [
        {"name": title, "cells": [_cell(run.mean(score, row, region), ".3f") for region in REGIONS]}
        for title, score, row in lines
        if run.values(score, row, REGIONS[0])
    ]
    dice: dict[str, dict[str, list[float]]] = {region: {} for region in REGIONS}
    for region in REGIONS:
        for name in run.annotators:
            drawn, gain = (run.values(score, name, region) for score in ("dice", "gain"))
            dice[region][f"{name}, own version"] = drawn
            dice[region][f"{name}, consensus"] = [a - b for a, b in zip(drawn, gain, strict=True)]
    gains = [found.mean for name in run.annotators if (found := run.mean("gain", name, "WT")) is not None]
    with style():
        picture = data_uri(scores_figure(dice))
    return {
        "title": "Several annotators: consensus, who and why",
        "lead": f"{len(run.annotators)} annotators, {count} held-out cases: knowing the annotator gains "
        f"{np.mean(gains):+.3f} Dice of the whole tumor on average, between {min(gains):+.3f} and {max(gains):+.3f}.",
        "count": count,
        "regions": REGIONS,
        "rows": rows,
        "consensus": together,
        "dice_picture": picture,
    }


def _cell(found: Interval | None, form: str) -> dict[str, str]:
    if found is None:
        return {"text": "n/a", "ends": ""}
    ends = "" if found.cases == 1 else f"[{format(found.low, form)}, {format(found.high, form)}]"
    return {"text": format(found.mean, form), "ends": ends}
