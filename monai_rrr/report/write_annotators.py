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

"""Report cards of annotators as one JSON file and one self-contained HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from monai_rrr.report.annotator_card import AnnotatorCard
from monai_rrr.report.annotator_page import ANNOTATOR_PAGE, ANNOTATOR_SECTION
from monai_rrr.report.html import render_html
from monai_rrr.report.pictures import COLORS, data_uri, style
from monai_rrr.utils.class_map import CLASSES
from monai_rrr.utils.provenance import INTENDED_USE, Provenance, write_results

__all__ = ["annotator_section", "write_annotators"]

_NOTE = "Relative to the consensus, which is not the truth. Annotators are pseudonyms; a habit is not an error."


def write_annotators(
    cards: Sequence[AnnotatorCard],
    out: str | Path,
    *,
    title: str = "Habits of the annotators",
    provenance: Provenance | None = None,
) -> list[Path]:
    """Write ``annotators.json``, ``annotators.html`` and ``annotators_provenance.json``; all or none.

    Args:
        cards: of :func:`~monai_rrr.report.annotator_cards`.
        out: folder, made when missing.
        title: heading of the page.
        provenance: what the masks were made with.

    Returns:
        The files, the record last.

    Raises:
        ValueError: When there is no card.
    """
    section = annotator_section(cards)
    cases = max(card.cases for card in cards)
    content = {
        "title": title,
        "lead": f"{len(cards)} annotators, up to {cases} cases each, compared with their consensus.",
        "section": section,
    }
    html = render_html(ANNOTATOR_PAGE, content)
    record = {"intended_use": INTENDED_USE, "note": _NOTE, "annotators": [card.record() for card in cards]}
    contents = {".json": (json.dumps(record, indent=2) + "\n").encode(), ".html": html.encode("utf-8")}
    return write_results(out, "annotators", contents, provenance or Provenance(), {})


def annotator_section(
    cards: Sequence[AnnotatorCard], title: str = "Habits of the annotators", anchor: str = "annotators"
) -> str:
    """Return the cards as a part of an HTML page: text is escaped, pictures are inside.

    Args:
        cards: of :func:`~monai_rrr.report.annotator_cards`.
        title: heading of the part.
        anchor: id of the heading.

    Raises:
        ValueError: When there is no card.
    """
    if not cards:
        raise ValueError("expected at least one card, got none")
    with style():
        picture = data_uri(habits_figure(cards))
    content = {
        "title": title,
        "anchor": anchor,
        "picture": picture,
        "classes": CLASSES,
        "cards": [_lines(card) for card in cards],
    }
    return render_html(ANNOTATOR_SECTION, content)


def habits_figure(cards: Sequence[AnnotatorCard]) -> Figure:
    """Draw offset and relative volume, one row per annotator.

    Args:
        cards: of :func:`~monai_rrr.report.annotator_cards`.
    """
    figure = Figure(figsize=(10.0, 1.0 + 0.36 * len(cards)), layout="constrained")
    offset, volume = figure.subplots(1, 2, sharey=True)
    jitter = np.random.default_rng(0)
    for row, card in enumerate(cards):
        if card.tendency is not None and np.isfinite(card.tendency.offset_mm):
            spread = card.tendency.offset_sd_mm
            offset.errorbar(
                card.tendency.offset_mm,
                row,
                xerr=spread if np.isfinite(spread) else None,
                fmt="o",
                color=COLORS[0],
                capsize=3,
            )
        shares = [100 * (own / shared - 1) for own, shared in card.volumes_ml if shared > 0]
        if shares:
            height = row + jitter.uniform(-0.14, 0.14, len(shares))
            volume.plot(shares, height, "o", color=COLORS[4], markersize=4.5, alpha=0.75, markeredgewidth=0)
            volume.plot([np.mean(shares)] * 2, [row - 0.3, row + 0.3], color=COLORS[1], linewidth=2.2)
    for axis, label in ((offset, "offset of the contour (mm)"), (volume, "volume against the consensus (%)")):
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlabel=label, ylim=(len(cards) - 0.5, -0.5))
        axis.grid(False, axis="y")
    offset.set_yticks(range(len(cards)), [card.annotator for card in cards])
    return figure


def _lines(card: AnnotatorCard) -> dict[str, Any]:
    measured = card.tendency
    offset = sigma = "n/a"
    confusion = None
    if measured is not None:
        offset = _text(measured.offset_mm, "+.2f")
        if np.isfinite(measured.offset_sd_mm):
            offset += f" ± {measured.offset_sd_mm:.2f}"
        sigma = _text(measured.sigma_mm, ".2f")
        rows = zip(("outside", *CLASSES[1:]), measured.confusion, strict=True)
        confusion = [[name, *(f"{100 * share:.0f}" for share in row)] for name, row in rows]
    return {
        "name": card.annotator,
        "cases": card.cases,
        "left_out": card.left_out,
        "cells": [
            _text(card.rho, ".2f"),
            _text(card.volume_bias_ml, "+.2f"),
            _text(100 * card.volume_bias, "+.0f"),
            offset,
            sigma,
            _text(card.roughness_mm, ".2f"),
            _text(card.consensus_roughness_mm, ".2f"),
        ],
        "sentences": card.sentences(),
        "confusion": confusion,
        "recall": [_recall(row) for row in card.recall()],
    }


def _recall(row: dict[str, Any]) -> list[str]:
    low, high, recall = row["from_mm3"], row["to_mm3"], row["recall"]
    size = f"from {low:g}" if high is None else f"below {high:g}" if low == 0 else f"{low:g} to {high:g}"
    return [size, str(row["found"]), str(row["lesions"]), "n/a" if recall is None else f"{recall:.2f}"]


def _text(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "n/a"
