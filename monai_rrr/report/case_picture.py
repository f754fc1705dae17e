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


"""One picture of one case: modalities, heatmaps, prediction and truth on the slices that matter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from monai_rrr.report.case_view import CaseView, load_case_view
from monai_rrr.report.pictures import FAINT, opacity, render, style, visible_from
from monai_rrr.utils.enums import REGIONS
from monai_rrr.utils.files import atomic_write, safe_name

__all__ = ["case_figure", "write_case_picture"]

PRED, TRUTH = "#E69F00", "#56B4E9"
CMAP = "inferno"
TITLES = {"t1": "T1", "t1c": "T1 contrast", "t2": "T2", "flair": "FLAIR"}
BACKGROUND = {
    "WT": ("flair", "t2", "t1c", "t1"),
    "TC": ("t1c", "flair", "t2", "t1"),
    "ET": ("t1c", "flair", "t1", "t2"),
}
"""Modality that shows a region best, then the next best."""

Plane = NDArray[Any]


def case_figure(view: CaseView) -> Figure:
    """Draw a case in up to four rows: modalities, WT heatmap of each, fused heatmaps, prediction with truth.

    Axial slices in radiological view: the patient's right is on the left of the picture. The slice of a region is that
    of its largest true area or, without truth, of most evidence. The last column of fused heatmaps and contours is the
    coronal slice through the middle of WT.

    Args:
        view: case with its results.
    """
    names = list(view.images)
    single = [name for name in names if (name, "WT") in view.modality_heatmaps]
    rows = 3 + bool(single)
    x, y, z = (n * s for n, s in zip(view.images[names[0]].shape, view.spacing, strict=True))
    heights = [y / x] * (rows - 2) + [max(y, z) / x] * 2
    figure = Figure(figsize=(10.0, 2.35 * sum(heights) + 0.22 * rows + 0.5), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, 4, height_ratios=heights)
    for axis in axes.ravel():
        axis.set_axis_off()
    z_wt = view.slice_of("WT")
    for column, name in enumerate(names):
        _show(axes[0, column], view, name, z_wt)
        axes[0, column].set_title(f"{TITLES.get(name, name)}, slice {view.first_slice + z_wt}", fontsize=9)
        if name in single:
            _show(axes[1, column], view, name, z_wt)
            _heat(axes[1, column], view, view.modality_heatmaps[name, "WT"], z_wt)
            axes[1, column].set_title(f"WT heatmap of {TITLES.get(name, name)}", fontsize=9)
    for column, region in enumerate(REGIONS):
        _region(axes[-2:, column], view, region)
    _coronal(axes[-2:, 3], view)
    _legends(figure, view)
    return figure


def _region(axes: NDArray[Any], view: CaseView, region: str) -> None:
    index, name = view.slice_of(region), background(view, region)
    title = f"{region} on {TITLES.get(name, name)}, slice {view.first_slice + index}"
    for axis in axes:
        _show(axis, view, name, index)
    _heat(axes[0], view, view.heatmaps[region], index)
    axes[0].set_title(f"fused {title}", fontsize=9)
    _contour(axes[1], _axial(view.pred[region], index), PRED, "solid")
    if region in view.truth:
        _contour(axes[1], _axial(view.truth[region], index), TRUTH, "dashed")
    axes[1].set_title(title, fontsize=9)


def _coronal(axes: NDArray[Any], view: CaseView) -> None:
    mask = view.truth.get("WT")
    source = mask if mask is not None and mask.any() else view.heatmaps["WT"]
    index, name = int(source.sum((0, 2)).argmax()), background(view, "WT")
    for axis in axes:
        image = view.images[name]
        _image(axis, image[::-1, index].T, image, view, (0, 2))
        axis.set_title("WT, coronal", fontsize=9)
    _overlay(axes[0], view.heatmaps["WT"][::-1, index].T, view.heatmaps["WT"], view, (0, 2))
    _contour(axes[1], view.pred["WT"][::-1, index].T, PRED, "solid")
    if mask is not None:
        _contour(axes[1], mask[::-1, index].T, TRUTH, "dashed")


def _legends(figure: Figure, view: CaseView) -> None:
    lines = [Line2D([], [], color=PRED, linewidth=1.6, label="prediction (tag-calibrated)")]
    if view.truth:
        lines.append(
            Line2D([], [], color=TRUTH, linewidth=1.6, linestyle="dashed", label="truth (mask, for scoring only)")
        )
    figure.legend(handles=lines, loc="outside lower left", ncols=2, fontsize=9)
    scale = ScalarMappable(Normalize(0, 1), CMAP)
    bar = figure.colorbar(scale, ax=figure.axes, location="right", shrink=0.4, aspect=30, pad=0.01)
    bar.set_label(f"heatmap: evidence for the region (drawn from {FAINT} above the median of the brain)")


def background(view: CaseView, region: str) -> str:
    """Name of the modality that shows a region best among those that the case has."""
    return next(name for name in (*BACKGROUND[region], *view.images) if name in view.images)


def _axial(array: Plane, index: int) -> Plane:
    plane: Plane = array[::-1, :, index].T
    return plane


def _show(axis: Axes, view: CaseView, name: str, index: int) -> None:
    _image(axis, _axial(view.images[name], index), view.images[name], view, (0, 1))


def _image(axis: Axes, plane: Plane, volume: Plane, view: CaseView, axes: tuple[int, int]) -> None:
    brain = volume[volume != 0]
    low, high = np.percentile(brain, (0.5, 99.5)) if brain.size else (0.0, 1.0)
    low = min(low, 0.0) if low > 0 else low
    axis.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), **_layout(view, axes))


def _heat(axis: Axes, view: CaseView, heatmap: Plane, index: int) -> None:
    _overlay(axis, _axial(heatmap, index), heatmap, view, (0, 1))


def _overlay(axis: Axes, plane: Plane, heatmap: Plane, view: CaseView, axes: tuple[int, int]) -> None:
    shown = opacity(plane, visible_from(heatmap, view.brain))
    axis.imshow(plane, cmap=CMAP, vmin=0, vmax=1, alpha=shown, **_layout(view, axes))


def _contour(axis: Axes, mask: Plane, color: str, line: str) -> None:
    if mask.any():
        limits = axis.get_xlim(), axis.get_ylim()
        # a border of zeros closes outlines at the edge of the picture
        padded = np.pad(mask.astype(float), 1)
        rows, columns = (np.arange(n) - 1 for n in padded.shape)
        axis.contour(columns, rows, padded, levels=[0.5], colors=[color], linestyles=line, linewidths=1.4)
        axis.set(xlim=limits[0], ylim=limits[1])


def _layout(view: CaseView, axes: tuple[int, int]) -> dict[str, Any]:
    aspect = view.spacing[axes[1]] / view.spacing[axes[0]]
    return {"origin": "lower", "aspect": aspect, "interpolation": "bilinear"}


def write_case_picture(case: Mapping[str, Any], folder: str | Path, convention: str) -> Path:
    """Write ``<folder>/<case>/<case>.png`` beside what inference wrote for a case.

    Args:
        case: entry of the datalist; its label is drawn when there is one.
        folder: see :func:`~monai_rrr.report.case_view.load_case_view`.
        convention: label convention of prediction and label.
    """
    stem = safe_name(str(case["case_id"]))
    path = Path(folder) / stem / f"{stem}.png"
    with style():
        atomic_write(path, render(case_figure(load_case_view(case, folder, convention)), "png", 110))
    return path
