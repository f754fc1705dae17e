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


"""The run record in words that a reader of the report understands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai_rrr.utils.enums import REGIONS

__all__ = ["describe_record"]


def describe_record(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Facts and tables of a run record; unknown fields are left out, missing ones too.

    Args:
        name: method.
        record: content of ``run.json``, see :class:`~monai_rrr.handlers.run_record.RunRecord`.

    Returns:
        ``name``, ``facts`` (pairs of texts) and ``tables`` (``caption``, ``head``, ``rows``).

    Example:
        >>> describe_record("full", {"epochs": 2, "seconds": 61.0})["facts"]
        [('training', '2 epochs'), ('time', '61 s')]
    """
    tables = [_weights(record.get("weights")), _points(record.get("operating_point"))]
    settings = record.get("settings") if isinstance(record.get("settings"), Mapping) else {}
    tables.append(_reliability(record.get("reliability"), (settings or {}).get("modalities")))
    return {"name": name, "facts": list(_facts(record, settings or {})), "tables": [t for t in tables if t]}


def _facts(record: Mapping[str, Any], settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    budget = record.get("tag_budget") if isinstance(record.get("tag_budget"), Mapping) else {}
    facts = [
        ("status", _text(record.get("status"))),
        ("training cases", _text(record.get("training_cases"))),
        ("tag budget", _budget(budget or {})),
        ("training", _length(record)),
        ("time", f"{record['seconds']:.0f} s" if isinstance(record.get("seconds"), (int, float)) else ""),
        ("hardware", _text(record.get("device"))),
        ("processes", _text(record.get("processes"))),
        *((f"{key}", _text(value)) for key, value in settings.items()),
        ("versions", ", ".join(f"{key} {value}" for key, value in (record.get("versions") or {}).items())),
        ("python", _text(record.get("python"))),
    ]
    return [(key, value) for key, value in facts if value]


def _budget(budget: Mapping[str, Any]) -> str:
    if "integers" not in budget or "integers_per_case" not in budget:
        return ""
    return f"{budget['integers']:g} integers, {budget['integers_per_case']:.2g} per case"


def _length(record: Mapping[str, Any]) -> str:
    if "epochs" not in record:
        return ""
    steps = record.get("iterations_per_epoch")
    return f"{record['epochs']} epochs" + (f" of {steps} steps" if steps else "")


def _weights(weights: Any) -> dict[str, Any] | None:
    if not isinstance(weights, Mapping) or not weights:
        return None
    moments = list(weights)
    terms = list(dict.fromkeys(term for at in moments for term in weights[at]))
    rows = [[term.replace("_", " "), *(f"{weights[at].get(term, 0):g}" for at in moments)] for term in terms]
    head = ["term", *(f"{100 * float(at):g} % of training" for at in moments)]
    return {"caption": "Weights of the objective", "head": head, "rows": rows}


def _points(points: Any) -> dict[str, Any] | None:
    if not isinstance(points, Sequence) or not points:
        return None
    rows = [[region, f"{t:.3f}", f"{area:.0f}"] for region, (t, area) in zip(REGIONS, points, strict=False)]
    caption = "Operating point, calibrated on the tags of the training cases"
    return {"caption": caption, "head": ["region", "threshold", "least area of a slice (mm²)"], "rows": rows}


def _reliability(reliability: Any, modalities: Any) -> dict[str, Any] | None:
    if not isinstance(reliability, Sequence) or not reliability:
        return None
    named = isinstance(modalities, Sequence) and len(modalities) == len(reliability)
    names = modalities if named else [f"modality {index}" for index in range(len(reliability))]
    rows = [[str(name), *(f"{value:.3f}" for value in row)] for name, row in zip(names, reliability, strict=True)]
    caption = "Weight of each modality in the fused heatmap, learned from the tags"
    return {"caption": caption, "head": ["modality", *REGIONS[: len(reliability[0])]], "rows": rows}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
