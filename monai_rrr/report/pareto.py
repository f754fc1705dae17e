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

"""The fair comparison of explanation losses: task against localization, over the weight of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from monai_rrr.report.pictures import COLORS, render, style
from monai_rrr.utils.files import atomic_write

__all__ = ["ParetoPoint", "pareto_figure", "pareto_front", "write_pareto_picture"]

_MARKERS = "osD^vPX"


@dataclass(frozen=True)
class ParetoPoint:
    """One trained setting; all scores are larger is better.

    Args:
        method: settings of one method are joined by a line.
        weight: of the explanation loss.
        f1: of the task.
        localization: name of a score, such as ``"EPG"`` or ``"IoU"`` -> value.
    """

    method: str
    weight: float
    f1: float
    localization: Mapping[str, float]


def pareto_front(first: ArrayLike, second: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other point beats: none is as good in both scores and better in one.

    Args:
        first: a score of every point, larger is better.
        second: the other one.

    Raises:
        ValueError: When the numbers of points differ, or a score is not finite.

    Example:
        >>> pareto_front([0.9, 0.8, 0.7], [0.2, 0.5, 0.4]).tolist()
        [True, True, False]
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape or a.ndim != 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"expected two finite scores of every point, got shapes {a.shape} and {b.shape}")
    as_good = (a[:, None] >= a) & (b[:, None] >= b)
    better = (a[:, None] > a) | (b[:, None] > b)
    return np.asarray(~(as_good & better).any(axis=0))


def pareto_figure(points: Sequence[ParetoPoint]) -> Figure:
    """Draw F1 against each localization score, one panel per score, one line per method in the order of the weights.

    Points on the Pareto front over all methods are filled, beaten ones are hollow; numbers are weights.

    Args:
        points: at least one; all with the same localization scores.

    Raises:
        ValueError: When there is no point, or scores differ in their names.
    """
    if not points or any(set(point.localization) != set(points[0].localization) for point in points):
        raise ValueError("expected at least one point, all with the same localization scores")
    names = list(points[0].localization)
    methods = list(dict.fromkeys(point.method for point in points))
    figure = Figure(figsize=(4.8 * len(names) + 1.2, 4.0), layout="constrained", facecolor="white")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
        _panel(axis, points, methods, name)
    figure.axes[0].set_ylabel("F1 of the task")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8)
    return figure


def write_pareto_picture(points: Sequence[ParetoPoint], path: str | Path) -> Path:
    """Write :func:`pareto_figure` as PNG.

    Args:
        points: see there.
        path: the file.
    """
    with style():
        atomic_write(path, render(pareto_figure(points), "png", 130))
    return Path(path)


def _panel(axis: Axes, points: Sequence[ParetoPoint], methods: Sequence[str], name: str) -> None:
    best = pareto_front([point.localization[name] for point in points], [point.f1 for point in points])
    for index, method in enumerate(methods):
        color, marker = COLORS[index % len(COLORS)], _MARKERS[index % len(_MARKERS)]
        own = sorted(((p, bool(b)) for p, b in zip(points, best, strict=True) if p.method == method), key=_weight)
        axis.plot([p.localization[name] for p, _ in own], [p.f1 for p, _ in own], color=color, linewidth=1, alpha=0.6)
        for number, (point, front) in enumerate(own):
            x, y = point.localization[name], point.f1
            label = method if number == 0 else None
            axis.plot([x], [y], marker, color=color, markerfacecolor=color if front else "white", label=label)
            axis.annotate(f"{point.weight:g}", (x, y), (4, 4), textcoords="offset points", fontsize=7, color=color)
    axis.set_xlabel(name)


def _weight(pair: tuple[ParetoPoint, bool]) -> float:
    return pair[0].weight
