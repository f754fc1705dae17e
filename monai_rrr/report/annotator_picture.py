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

"""One picture of a case that several annotators draw: consensus, everyone's version, whose habit, disagreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from monai_rrr.report.annotator_view import VISIBLE_BITS, AnnotatorView
from monai_rrr.report.case_picture import TITLES, TRUTH
from monai_rrr.utils.class_map import CLASSES

__all__ = ["annotator_figure"]

TISSUES = ("#D55E00", "#009E73", "#F0E442")
"""Of NCR, ED and ET."""
PEOPLE = ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#D55E00", "#56B4E9", "#F0E442", "#8C6BB1", "#FFFFFF")
"""Of annotators, in their order; beyond them they repeat."""
TISSUE_WORDS = ("necrotic and non-enhancing core (NCR)", "edema (ED)", "enhancing tumor (ET)")
COLUMNS = 4


def annotator_figure(view: AnnotatorView) -> Figure:
    """Draw the axial slice with most disagreement, in radiological view: the patient's right is on the left.

    First row: the consensus on FLAIR and on T1 with contrast, whose habit the result is like where annotators disagree
    (no color: what all share), disagreement. Then a panel per annotator, the
    network's version for this annotator as colors. The dashed line is the consensus' whole tumor, the dotted one what
    the annotator really drew.

    Args:
        view: of the case.
    """
    rows = 1 + -(-len(view.annotators) // COLUMNS)
    x, y = view.box
    ratio = (y.stop - y.start) * view.spacing[1] / ((x.stop - x.start) * view.spacing[0])
    figure = Figure(figsize=(10.0, 2.5 * ratio * rows + 0.3 * rows + 1.0), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    flair, contrast = _best(view, ("flair", "t2")), _best(view, ("t1c", "t1"))
    for axis, name in zip(axes[0], (flair, contrast), strict=False):
        _image(axis, view, name)
        _tissue(axis, view, view.consensus)
        axis.set_title(f"consensus on {TITLES.get(name, name)}", fontsize=9)
    _image(axes[0, 2], view, flair)
    _who(axes[0, 2], view)
    axes[0, 2].set_title("whose habit, where they disagree", fontsize=9)
    _image(axes[0, 3], view, flair)
    plane = _plane(view, view.disagreement)
    bits = axes[0, 3].imshow(
        np.ma.masked_less_equal(plane, VISIBLE_BITS), cmap="inferno", vmin=0, vmax=1, **_layout(view)
    )
    axes[0, 3].set_title("disagreement (bits)", fontsize=9)
    figure.colorbar(bits, ax=axes[0, 3], shrink=0.7, pad=0.01)
    people = zip(view.annotators, view.versions, view.drawn, strict=True)
    for axis, (name, version, drawn) in zip(axes[1:].ravel(), people, strict=False):
        _image(axis, view, flair)
        _tissue(axis, view, version)
        _line(axis, view, view.consensus > 0, TRUTH, "dashed")
        _line(axis, view, drawn > 0, "white", "dotted")
        axis.set_title(f"{name}, as predicted", fontsize=9)
    figure.legend(handles=_handles(view.annotators), loc="outside lower left", ncols=4, fontsize=8)
    return figure


def _handles(names: Sequence[str]) -> list[Any]:
    lines = [
        Line2D([], [], color=TRUTH, linewidth=1.4, linestyle="dashed", label="consensus, whole tumor"),
        Line2D([], [], color="0.4", linewidth=1.4, linestyle="dotted", label="drawn by the annotator (white)"),
    ]
    tissue = [Patch(color=color, label=word) for color, word in zip(TISSUES, TISSUE_WORDS, strict=True)]
    people = [Patch(facecolor=_color(n), edgecolor="0.5", label=f"like {name}") for n, name in enumerate(names)]
    return lines + tissue + people


def _color(index: int) -> str:
    return PEOPLE[index % len(PEOPLE)]


def _best(view: AnnotatorView, names: Sequence[str]) -> str:
    return next(name for name in (*names, *view.images) if name in view.images)


def _plane(view: AnnotatorView, volume: NDArray[Any]) -> NDArray[Any]:
    x, y = view.box
    return np.asarray(volume[:, :, view.depth][x, y][::-1].T)


def _layout(view: AnnotatorView) -> dict[str, Any]:
    return {"origin": "lower", "aspect": view.spacing[1] / view.spacing[0], "interpolation": "nearest"}


def _image(axis: Axes, view: AnnotatorView, name: str) -> None:
    image = view.images[name]
    inside = image[image != 0]
    high = float(np.percentile(inside, 99.5)) if inside.size else 1.0
    axis.imshow(_plane(view, image), cmap="gray", vmin=0, vmax=high, **{**_layout(view), "interpolation": "bilinear"})


def _tissue(axis: Axes, view: AnnotatorView, classes: NDArray[Any]) -> None:
    plane = _plane(view, classes)
    shown = np.ma.masked_less_equal(plane, 0)
    axis.imshow(shown, cmap=ListedColormap(TISSUES), vmin=1, vmax=len(CLASSES) - 1, alpha=0.55, **_layout(view))


def _who(axis: Axes, view: AnnotatorView) -> None:
    count = len(view.annotators)
    colors = ListedColormap([_color(index) for index in range(count)])
    shown = np.ma.masked_less_equal(_plane(view, np.where(view.disputed, view.who, 0)), 0)
    axis.imshow(shown, cmap=colors, vmin=0.5, vmax=count + 0.5, alpha=0.8, **_layout(view))
    _line(axis, view, view.consensus > 0, TRUTH, "dashed")


def _line(axis: Axes, view: AnnotatorView, mask: NDArray[Any], color: str, style: str) -> None:
    plane = _plane(view, mask)
    if plane.any() and not plane.all():
        axis.contour(plane.astype(float), levels=[0.5], colors=[color], linestyles=style, linewidths=1.2)
