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


"""Pictures of a report as text that goes into an HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from monai_rrr.utils.enums import REGIONS

__all__ = ["curves_figure", "data_uri", "opacity", "scores_figure", "style", "visible_from"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette: told apart with any color vision."""

FAINT = 0.1
"""Evidence is drawn from this above the background of its map."""

_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw with the look of a report, whatever the user's matplotlib is set to."""
    with rc_context():
        import matplotlib

        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _STYLE))
        yield


def visible_from(heatmap: NDArray[Any], brain: NDArray[np.bool_]) -> float:
    """Return the value from which evidence of a map is drawn: 0.1 above its background, the median in the brain.

    Sigmoid maps have a background of 0.3 to 0.4 that would cover the whole brain; it is the same for a whole volume, so
    that its slices can be compared.

    Args:
        heatmap: in [0, 1], larger is more evidence.
        brain: same shape.

    Example:
        >>> heatmap = np.full((4, 4, 4), 0.375)
        >>> heatmap[0] = 0.9
        >>> visible_from(heatmap, np.ones((4, 4, 4), dtype=bool))
        0.475
    """
    background = float(np.median(heatmap[brain])) if brain.any() else 0.0
    return background + FAINT


def opacity(plane: NDArray[Any], start: float) -> NDArray[Any]:
    """Return how much evidence covers the image: 0 up to `start`, then growing to 0.8 halfway to 1."""
    shown: NDArray[Any] = np.clip((plane - start) * 1.5 / max(1 - start, 1e-3), 0.0, 0.8)
    return shown


def data_uri(figure: Figure, kind: str = "png", dpi: int = 110) -> str:
    """Render a figure to ``data:image/...;base64,...``.

    Args:
        figure: what to render; needs no window and no pyplot.
        kind: ``"png"`` for lines, ``"jpeg"`` for images.
        dpi: dots per inch.
    """
    return f"data:image/{kind};base64,{base64.b64encode(render(figure, kind, dpi)).decode('ascii')}"


def render(figure: Figure, kind: str, dpi: int) -> bytes:
    """Render a figure to the bytes of an image file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    options: dict[str, Any] = {"pil_kwargs": {"quality": 86, "optimize": True}} if kind == "jpeg" else {}
    figure.savefig(buffer, format=kind, dpi=dpi, **options)
    return buffer.getvalue()


def curves_figure(curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure:
    """Small multiples of training curves, one per term, one line per run.

    Args:
        curves: run -> term -> (step, value).
    """
    terms = list(dict.fromkeys(term for run in curves.values() for term in run))
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    figure = Figure(figsize=(10.0, 2.1 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis, term in zip(axes, terms, strict=False):
        for color, (name, run) in zip(_cycle(len(curves)), curves.items(), strict=True):
            if term in run:
                steps, values = zip(*run[term], strict=True)
                axis.plot(steps, values, color=color, label=name, linewidth=1.5)
        axis.set_title(term.replace("_", " "), loc="left", fontweight="bold")
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    for axis in axes[len(terms) :]:
        axis.set_visible(False)
    for axis in axes[max(0, len(terms) - columns) : len(terms)]:
        axis.set_xlabel("step")
        axis.tick_params(labelbottom=True)
    if len(curves) > 1:
        handles = {h.get_label(): h for axis in axes for h in axis.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=len(curves))
    return figure


def scores_figure(dice: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Dice of every case: one panel per region, one column of dots per method, the bar is the mean.

    Args:
        dice: region -> label of a method -> one value per case.
    """
    regions = [region for region in REGIONS if dice.get(region)]
    labels = list(dict.fromkeys(label for region in regions for label in dice[region]))
    figure = Figure(figsize=(10.0, 0.9 + 0.3 * len(labels)), layout="constrained")
    panels = figure.subplots(1, len(regions), squeeze=False, sharex=True, sharey=True)[0]
    for axis, region in zip(panels, regions, strict=True):
        _dots(axis, [dice[region].get(label, ()) for label in labels])
        axis.set_title(region, loc="left", fontweight="bold")
        axis.set_xlabel("Dice")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure


def _dots(axis: Axes, rows: Sequence[Sequence[float]]) -> None:
    jitter = np.random.default_rng(0)
    for row, values in enumerate(rows):
        if values:
            height = row + jitter.uniform(-0.16, 0.16, len(values))
            axis.plot(values, height, "o", color=COLORS[4], markersize=4.5, alpha=0.75, markeredgewidth=0)
            axis.plot([np.mean(values)] * 2, [row - 0.32, row + 0.32], color=COLORS[1], linewidth=2.2)
            axis.text(1.04, row, f"{np.mean(values):.2f}", va="center", fontsize=8, color=COLORS[1])
    axis.set_xlim(-0.03, 1.03)


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]
