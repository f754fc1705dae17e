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

"""One self-contained HTML file that says where a network looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from monai_rrr.errors import DataError
from monai_rrr.metrics.statistics import bootstrap_mean
from monai_rrr.report.audit_case import PLACES, CaseAudit, Evidence, measure
from monai_rrr.report.audit_page import AUDIT_PAGE
from monai_rrr.report.audit_picture import Planes, case_planes, planes_figure, sanity_figure, shares_figure
from monai_rrr.report.case_picture import TITLES
from monai_rrr.report.html import save_html
from monai_rrr.report.pictures import data_uri, style

__all__ = ["EFFECT", "SHARE", "write_audit"]

EFFECT = (
    "log-odds lost without it",
    "Each modality is replaced by its mean inside the brain, all others stay: how far do the log-odds of the explained "
    "class fall? 0: the decision does not rest on it. Negative: it speaks against the class.",
)
SHARE = (
    "share of its own evidence in the lesion",
    "The network makes a heatmap of each modality: how much of that evidence lies in the lesion?",
)
UNRELATED = 0.5
"""Similarity from which on a heatmap of a network without learned weights counts as the same."""

BRAIN_MAP, BOX_MAP = "uniform in the brain", "uniform in the box"


def write_audit(
    cases: Sequence[Mapping[str, Any]],
    evidence_of: Callable[[Mapping[str, Any]], Evidence],
    out: str | Path,
    *,
    title: str,
    record: Sequence[tuple[str, str]] = (),
    sanity: Mapping[str, Mapping[float, float]] | None = None,
    modality_words: tuple[str, str] = EFFECT,
    tolerance_mm: float = 5.0,
    max_cases: int = 24,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Measure every case and write ``index.html``; everything is inside the one file, which holds no path.

    Args:
        cases: entries of a datalist, with masks or without.
        evidence_of: makes the evidence of a case, such as
            :meth:`~monai_rrr.report.audit_network.NetworkUnderAudit.evidence`. Called once per case.
        out: folder for ``index.html``, or an ``.html`` file.
        title: heading of the page.
        record: facts about the network for the end of the page.
        sanity: case -> share of randomized layers -> similarity. None: not done.
        modality_words: column head and explanation of what each modality contributes: :data:`EFFECT` or :data:`SHARE`.
        tolerance_mm: of the pointing game.
        max_cases: pictures are made of so many cases, the worst ones.
        progress: called with (done, total) cases.

    Returns:
        The file.

    Raises:
        ValueError: When `max_cases` is less than 1.
        DataError: When there is no case, or one can't be read.

    Example:
        >>> write_audit(cases, audited.evidence, "audit", title="Where does net.pt look?")  # doctest: +SKIP
        PosixPath('audit/index.html')
    """
    if max_cases < 1:
        raise ValueError(f"expected at least one case to show, got {max_cases}")
    if not cases:
        raise DataError("no-cases", "expected at least one case, got none")
    measured: list[tuple[CaseAudit, Planes]] = []
    for number, case in enumerate(cases):
        evidence = evidence_of(case)
        measured.append((measure(evidence, tolerance_mm), case_planes(evidence)))
        if progress is not None:
            progress(number + 1, len(cases))
    measured.sort(key=lambda pair: (not pair[0].has_lesion, -pair[0].badness, pair[0].case_id))
    audits = [audit for audit, _ in measured]
    content = _numbers(audits, tolerance_mm) | _modalities(audits, modality_words)
    content |= {"title": title, "count": len(audits), "hidden": len(audits) - max_cases > 0}
    content |= {"warnings": _warnings(audits), "record": [*record, *_versions()], "sanity_picture": ""}
    with style():
        content["shares_picture"] = data_uri(shares_figure(audits, _baselines(audits)))
        if sanity:
            content["sanity_picture"] = data_uri(sanity_figure(sanity))
            content["sanity_text"] = _sanity_text(sanity)
        content["shown"] = [_case(audit, planes) for audit, planes in measured[:max_cases]]
    return save_html(AUDIT_PAGE, content, out)


def _numbers(audits: Sequence[CaseAudit], tolerance_mm: float) -> dict[str, Any]:
    with_lesion = [audit for audit in audits if audit.has_lesion]
    without = [audit for audit in audits if not audit.has_lesion]
    tables, facts = [], []
    if with_lesion:
        tables.append(_table(with_lesion, PLACES, f"{len(with_lesion)} cases with a lesion mask"))
    if without:
        tables.append(_table(without, PLACES[1:], f"{len(without)} cases without a lesion or without a mask"))
    silent = sum(not np.isfinite(audit.shares[PLACES[2]]) for audit in audits)
    lifts = [audit.lift for audit in with_lesion if np.isfinite(audit.lift)]
    hits = [audit.hit for audit in with_lesion if np.isfinite(audit.hit)]
    if lifts:
        facts.append(("lift", f"{_interval(lifts, '.2f')}: evidence in the lesion over that of the map {BRAIN_MAP}"))
    if hits:
        text = f"{sum(hits):.0f} of {len(hits)} cases: strongest voxel in the lesion or within {tolerance_mm:g} mm"
        facts.append(("pointing game", text))
    facts.append(("no evidence", f"{silent} of {len(audits)} cases: no heatmap to judge, not part of the means"))
    return {"tables": tables, "facts": facts, "lead": _lead(with_lesion, audits)}


def _lead(with_lesion: Sequence[CaseAudit], audits: Sequence[CaseAudit]) -> str:
    outside = _mean([audit.shares[PLACES[2]] for audit in audits])
    box = _mean([audit.uniform_shares[PLACES[2]] for audit in audits])
    last = f"{_percent(outside)} of the evidence lies outside of the brain (map {BOX_MAP}: {_percent(box)})."
    if not with_lesion:
        return f"{len(audits)} cases without lesion masks: {last}"
    inside = _mean([audit.shares[PLACES[0]] for audit in with_lesion])
    chance = _mean([audit.brain_shares[PLACES[0]] for audit in with_lesion])
    first = f"{_percent(inside)} of the evidence lies in the lesion (map {BRAIN_MAP}: {_percent(chance)})"
    return f"{len(with_lesion)} cases with lesion masks: {first}; over all {len(audits)} cases {last}"


def _table(audits: Sequence[CaseAudit], places: Sequence[str], caption: str) -> dict[str, Any]:
    rows = []
    for place in places:
        values = [audit.shares[place] for audit in audits if np.isfinite(audit.shares[place])]
        mean, _, ends = _interval(values, ".3f").partition(" ")
        baselines = ([a.brain_shares[place] for a in audits], [a.uniform_shares[place] for a in audits])
        brain, box = (f"{_mean(found):.3f}" for found in baselines)
        rows.append({"place": place, "mean": mean, "ends": ends, "brain": brain, "box": box})
    return {"caption": caption, "rows": rows}


def _modalities(audits: Sequence[CaseAudit], words: tuple[str, str]) -> dict[str, Any]:
    names = dict.fromkeys(name for audit in audits for name in audit.modalities)
    rows = []
    for name in names:
        values = [audit.modalities[name] for audit in audits if np.isfinite(audit.modalities.get(name, np.nan))]
        mean, _, ends = _interval(values, "+.3f" if words is EFFECT else ".3f").partition(" ")
        rows.append({"name": TITLES.get(name, name), "mean": mean, "ends": ends, "cases": len(values)})
    return {"modalities": rows, "modality_head": words[0], "modality_text": words[1]}


def _warnings(audits: Sequence[CaseAudit]) -> list[str]:
    found = []
    covered = [audit for audit in audits if not audit.stripped]
    if covered:
        found.append(
            f"{len(covered)} of {len(audits)} cases have no background of 0, so the brain can't be told from the rest: "
            "nothing counts as outside there. Audit skull-stripped images."
        )
    classes = sorted({audit.class_name for audit in audits})
    if len(classes) > 1:
        found.append(
            f"The explained class differs between cases ({', '.join(classes)}), because it is the predicted one. "
            "Evidence for a class without a lesion need not lie in the lesion: name the class to audit."
        )
    return found


def _baselines(audits: Sequence[CaseAudit]) -> dict[str, dict[str, float]]:
    chosen = [audit for audit in audits if audit.has_lesion] or list(audits)
    maps = {BRAIN_MAP: [a.brain_shares for a in chosen], BOX_MAP: [a.uniform_shares for a in chosen]}
    return {name: {place: _mean([s[place] for s in shares]) for place in PLACES} for name, shares in maps.items()}


def _sanity_text(sanity: Mapping[str, Mapping[float, float]]) -> str:
    last = _mean([steps[max(steps)] for steps in sanity.values()])
    verdict = "passed" if abs(last) < UNRELATED else "FAILED"
    return f"{verdict}: with all weights randomized the similarity is {last:.2f} (less than {UNRELATED:g} passes)."


def _case(audit: CaseAudit, planes: Planes) -> dict[str, Any]:
    parts = [
        f"{_percent(audit.shares[place])} {name}"
        for place, name in zip(
            PLACES, ("in the lesion", "in the rest of the brain", "outside of the brain"), strict=True
        )
        if np.isfinite(audit.shares[place])
    ]
    text = f"Evidence for {audit.class_name}: " + (", ".join(parts) if parts else "none")
    if np.isfinite(audit.lift):
        text += f"; lift {audit.lift:.2f}"
    if audit.probability is not None:
        text += f"; probability of the class {audit.probability:.2f}"
    picture = data_uri(planes_figure(planes), "jpeg")
    return {"case_id": audit.case_id, "has_lesion": audit.has_lesion, "text": f"{text}.", "picture": picture}


def _versions() -> list[tuple[str, str]]:
    return [("software", ", ".join(f"{name} {version(name)}" for name in ("monai-rrr", "monai", "torch", "numpy")))]


def _interval(values: Sequence[float], form: str) -> str:
    if not values:
        return "n/a"
    found = bootstrap_mean(values)
    ends = "" if found.cases == 1 else f" [{format(found.low, form)}, {format(found.high, form)}]"
    return f"{format(found.mean, form)}{ends}"


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "n/a"
