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

"""Figures of an audit: where evidence lies in each case, shares of all cases, the sanity check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from monai_rrr.report.audit_case import PLACES, CaseAudit, Evidence, brain_mask
from monai_rrr.report.case_picture import BACKGROUND, CMAP, TITLES, TRUTH
from monai_rrr.report.pictures import COLORS, FAINT, opacity

__all__ = ["Planes", "case_planes", "planes_figure", "sanity_figure", "shares_figure"]

PLACE_COLORS = dict(zip(PLACES, (COLORS[2], COLORS[5], COLORS[1]), strict=True))
MARGIN = 4


@dataclass(frozen=True)
class Plane:
    """One slice: image, heatmap (1 at the volume's maximum), lesion and brain, rows from below, left is patient right.

    Args:
        title: what is shown.
        layers: ``"image"``, ``"heatmap"``, ``"lesion"``, ``"brain"`` -> array.
        aspect: height over width of a voxel.
    """

    title: str
    layers: Mapping[str, NDArray[Any]]
    aspect: float


@dataclass(frozen=True)
class Planes:
    """The slices of a case that are worth a look, and the gray values to show them with."""

    planes: tuple[Plane, ...]
    window: tuple[float, float]


def case_planes(evidence: Evidence) -> Planes:
    """Cut the axial slice with most evidence, that with most lesion, and the coronal slice with most evidence.

    Without a lesion the second one is the axial slice of the strongest voxel.

    Args:
        evidence: of one case.
    """
    name = next(n for n in (*BACKGROUND["WT"], *evidence.images) if n in evidence.images)
    image, positive = evidence.images[name], np.maximum(evidence.heatmap, 0)
    heatmap = positive / max(float(positive.max()), 1e-12)
    lesion = np.zeros(image.shape, bool) if evidence.lesion is None else evidence.lesion
    box = _box(image != 0, heatmap > FAINT)
    whole: dict[str, NDArray[Any]] = {
        "image": image,
        "heatmap": heatmap,
        "lesion": lesion,
        "brain": brain_mask(evidence.images),
    }
    arrays: dict[str, NDArray[Any]] = {key: np.asarray(array[box]) for key, array in whole.items()}
    start = box[2].start
    most = int(arrays["heatmap"].sum((0, 1)).argmax())
    if arrays["lesion"].any():
        other, text = int(arrays["lesion"].sum((0, 1)).argmax()), "largest part of the lesion"
    else:
        other, text = int(arrays["heatmap"].max((0, 1)).argmax()), "strongest voxel"
    side = int(arrays["heatmap"].sum((0, 2)).argmax())
    x, y, z = evidence.spacing
    label = TITLES.get(name, name)
    planes = (
        Plane(f"{label}, slice {start + most}: most evidence", _cut(arrays, 2, most), y / x),
        Plane(f"{label}, slice {start + other}: {text}", _cut(arrays, 2, other), y / x),
        Plane(f"{label}, coronal: most evidence", _cut(arrays, 1, side), z / x),
    )
    inside = image[image != 0]
    window = (
        (0.0, float(np.percentile(inside, 99.5))) if inside.size and inside.min() >= 0 else (image.min(), image.max())
    )
    return Planes(planes, (float(window[0]), float(window[1])))


def planes_figure(planes: Planes) -> Figure:
    """Draw the slices of a case with outlines (above) and with the heatmap on top (below).

    Args:
        planes: of :func:`case_planes`.
    """
    figure = Figure(figsize=(10.0, 6.6), layout="constrained", facecolor="white")
    axes = figure.subplots(2, len(planes.planes), squeeze=False)
    for column, plane in zip(axes.T, planes.planes, strict=True):
        layout: dict[str, Any] = {"origin": "lower", "aspect": plane.aspect, "interpolation": "bilinear"}
        for axis in column:
            axis.set_axis_off()
            axis.imshow(plane.layers["image"], cmap="gray", vmin=planes.window[0], vmax=planes.window[1], **layout)
        heatmap = plane.layers["heatmap"]
        covering = opacity(heatmap, FAINT)
        column[1].imshow(heatmap, cmap=CMAP, vmin=0, vmax=1, alpha=covering, **layout)
        for axis in column:
            _outline(axis, plane.layers["brain"], "#8a8a8a", 0.8)
            _outline(axis, plane.layers["lesion"], TRUTH, 1.5)
        column[0].set_title(plane.title, fontsize=9)
    lines = [
        Line2D([], [], color=TRUTH, linewidth=1.5, label="lesion (mask)"),
        Line2D([], [], color="#8a8a8a", linewidth=0.8, label="brain"),
    ]
    figure.legend(handles=lines, loc="outside lower left", ncols=2, fontsize=9)
    return figure


def shares_figure(cases: Sequence[CaseAudit], baselines: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the shares of all cases, worst first, below those of the baselines.

    Args:
        cases: in the order of the bars.
        baselines: name -> shares by place.
    """
    rows = [*baselines.items(), *((case.case_id, case.shares) for case in cases)]
    figure = Figure(figsize=(10.0, 0.9 + 0.24 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for row, (_, shares) in enumerate(rows):
        left = 0.0
        for place in PLACES:
            share = shares[place]
            if np.isfinite(share):
                shade = 0.45 if row < len(baselines) else 1.0
                axis.barh(row, share, left=left, height=0.78, color=PLACE_COLORS[place], alpha=shade)
                left += share
        if left == 0:
            axis.text(0.01, row, "no evidence for the class", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="share of the evidence")
    axis.grid(False, axis="y")
    if baselines:
        axis.axhline(len(baselines) - 0.5, color="black", linewidth=0.8)
    handles = [Line2D([], [], color=color, linewidth=6, label=place) for place, color in PLACE_COLORS.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=9)
    return figure


def sanity_figure(similarity: Mapping[str, Mapping[float, float]]) -> Figure:
    """Draw how alike heatmaps stay while the network's weights are destroyed, one line per case.

    Args:
        similarity: case -> share of randomized layers -> similarity.
    """
    figure = Figure(figsize=(5.4, 2.9), layout="constrained")
    axis = figure.subplots()
    for index, (case_id, steps) in enumerate(similarity.items()):
        axis.plot(list(steps), list(steps.values()), "o-", color=COLORS[index % len(COLORS)], label=case_id)
    axis.set(xlabel="share of layers randomized, from the output down", ylabel="similarity of the heatmap")
    axis.set(xlim=(-0.03, 1.03), ylim=(min(0.0, axis.get_ylim()[0]), 1.05))
    axis.legend(fontsize=8)
    return figure


def _box(*masks: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    there = np.any(masks, axis=0)
    cut = []
    for axis in range(3):
        inside = np.flatnonzero(there.any(tuple({0, 1, 2} - {axis})))
        low, high = (int(inside[0]), int(inside[-1])) if len(inside) else (0, there.shape[axis] - 1)
        cut.append(slice(max(0, low - MARGIN), min(there.shape[axis], high + 1 + MARGIN)))
    return cut[0], cut[1], cut[2]


def _cut(arrays: Mapping[str, NDArray[Any]], axis: int, index: int) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(array[::-1].take(index, axis=axis).T) for name, array in arrays.items()}


def _outline(axis: Axes, mask: NDArray[Any], color: str, width: float) -> None:
    if mask.any() and not mask.all():
        limits = axis.get_xlim(), axis.get_ylim()
        padded = np.pad(mask.astype(float), 1)
        rows, columns = (np.arange(n) - 1 for n in padded.shape)
        axis.contour(columns, rows, padded, levels=[0.5], colors=[color], linewidths=width)
        axis.set(xlim=limits[0], ylim=limits[1])
