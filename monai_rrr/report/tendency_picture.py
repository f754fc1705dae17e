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

"""A region in which annotators disagree beside the training patches that show the same habit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from monai_rrr.report.case_picture import PRED, TITLES, TRUTH

__all__ = ["PatchView", "patch_view", "why_figure"]

HALF_MM = 24.0
"""From the center to the side of what is shown."""

BAR_MM = 10.0
BOX = "#CC79A7"


@dataclass(frozen=True)
class PatchView:
    """An axial slice around a voxel, rows from below, the patient's right on the left.

    Args:
        title: what it is.
        images: one plane per modality.
        windows: gray values to show each with.
        own: outline of the annotator.
        consensus: outline of the consensus.
        cross: column and row of the voxel.
        aspect: height over width of a voxel.
        box: columns and rows of the saliency box; may be larger than the planes.
        column_mm: width of a voxel.
    """

    title: str
    images: tuple[NDArray[Any], ...]
    windows: tuple[tuple[float, float], ...]
    own: NDArray[np.bool_]
    consensus: NDArray[np.bool_]
    cross: tuple[int, int]
    aspect: float
    box: tuple[tuple[float, float], tuple[float, float]] | None = None
    column_mm: float = 1.0


def patch_view(
    image: Tensor,
    own: Tensor,
    consensus: Tensor,
    voxel: Sequence[int],
    title: str,
    box: Sequence[tuple[int, int]] | None = None,
    half_mm: float = HALF_MM,
) -> PatchView:
    """Cut an axial slice around a voxel.

    Args:
        image: ``MDHW``; a ``MetaTensor`` says where it lies, otherwise axes run right, anterior, superior in steps of
            1 mm.
        own: mask ``DHW`` of the annotator.
        consensus: mask ``DHW``.
        voxel: center of the cut.
        title: what it is.
        box: for each axis the first voxel and the one after the last.
        half_mm: from the center to the side.
    """
    affine = np.asarray(image.affine, dtype=np.float64) if isinstance(image, MetaTensor) else np.eye(4)
    turn = nib.io_orientation(affine)
    order = [int(np.flatnonzero(turn[:, 0] == axis)[0]) for axis in range(3)]
    size = np.linalg.norm(affine[:3, :3], axis=0)[order]
    shape = tuple(image.shape[1:])
    place = [_turned(float(voxel[a]), shape[a], turn[a, 1]) for a in order]
    x, y, z = (int(p) for p in place)
    reach = [max(3, round(half_mm / size[axis])) for axis in (0, 1)]
    # what lies outside of the volume is shown, too, so that all patches have the same scale
    start = [p - n for p, n in zip((x, y), reach, strict=True)]

    def plane(volume: Tensor) -> NDArray[Any]:
        whole = np.asarray(nib.apply_orientation(volume.detach().cpu().numpy(), turn))[:, :, z]
        padded = np.pad(whole, [(n, n) for n in reach], constant_values=whole.min())
        # index p is at p + n after padding, so that the cut from p - n starts at p
        part = padded[x : x + 2 * reach[0] + 1, y : y + 2 * reach[1] + 1]
        return np.asarray(part[::-1].T)

    frame = None
    if box is not None:
        sides = []
        for axis in (0, 1):
            a = order[axis]
            ends = [_turned(e, shape[a], turn[a, 1]) - start[axis] for e in (box[a][0], box[a][1] - 1)]
            sides.append((min(ends) - 0.5, max(ends) + 0.5))
        wide = 2 * reach[0]
        frame = ((wide - sides[0][1], wide - sides[0][0]), sides[1])
    volumes = list(image.as_tensor() if isinstance(image, MetaTensor) else image)
    return PatchView(
        title=title,
        images=tuple(plane(volume) for volume in volumes),
        windows=tuple(_window(volume.detach().cpu().numpy()) for volume in volumes),
        own=plane(own).astype(bool),
        consensus=plane(consensus).astype(bool),
        cross=(reach[0], reach[1]),
        aspect=float(size[1] / size[0]),
        box=frame,
        column_mm=float(size[0]),
    )


def why_figure(views: Sequence[PatchView], modalities: Sequence[str], title: str) -> Figure:
    """Draw the case on the left and training patches beside it, one row per modality.

    Args:
        views: the case first.
        modalities: names of the channels.
        title: sentences above the picture.
    """
    figure = Figure(
        figsize=(2.5 * max(len(views), 3), 2.5 * len(modalities) + 1.5), layout="constrained", facecolor="white"
    )
    axes = figure.subplots(len(modalities), len(views), squeeze=False)
    for column, view in zip(axes.T, views, strict=True):
        for axis, image, window in zip(column, view.images, view.windows, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            for spine in axis.spines.values():
                spine.set_visible(False)
            layout: dict[str, Any] = {"origin": "lower", "aspect": view.aspect, "interpolation": "bilinear"}
            axis.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], **layout)
            _outlines(axis, view)
        _marks(column[0], view)
        column[0].set_title(view.title, fontsize=8)
    for axis, name in zip(axes[:, 0], modalities, strict=True):
        axis.set_ylabel(TITLES.get(name, name), fontsize=9)
    lines = [
        Line2D([], [], color=PRED, linewidth=1.6, label="outline of the annotator"),
        Line2D([], [], color=TRUTH, linewidth=1.6, linestyle="dashed", label="outline of the consensus"),
        Line2D(
            [],
            [],
            color="white",
            marker="+",
            markeredgecolor=BOX,
            linewidth=0,
            label="place that is explained, or that a prototype is",
        ),
    ]
    if views[0].box is not None:
        lines.append(
            Line2D(
                [], [], color=BOX, linewidth=1, linestyle="dotted", label="part of the image that the result rests on"
            )
        )
    note = f"axial, {2 * HALF_MM:.0f} mm wide; R: patient's right; bar: {BAR_MM:.0f} mm"
    lines.append(Line2D([], [], color="white", label=note))
    figure.legend(handles=lines, loc="outside lower left", ncols=2, fontsize=8)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure


def _marks(axis: Axes, view: PatchView) -> None:
    """The patient's right, and a bar that gives the size."""
    halo = [withStroke(linewidth=2, foreground="black")]
    axis.text(0.03, 0.97, "R", transform=axis.transAxes, color="white", fontsize=8, va="top", path_effects=halo)
    columns = view.own.shape[1]
    width = BAR_MM / view.column_mm / columns
    axis.plot([0.96 - width, 0.96], [0.05] * 2, transform=axis.transAxes, color="white", linewidth=2, path_effects=halo)


def _outlines(axis: Axes, view: PatchView) -> None:
    rows, columns = view.own.shape
    for mask, color, line in ((view.own, PRED, "solid"), (view.consensus, TRUTH, "dashed")):
        if mask.any():
            # a border of zeros closes outlines at the edge of the picture
            padded = np.pad(mask.astype(float), 1)
            x, y = np.arange(columns + 2) - 1, np.arange(rows + 2) - 1
            axis.contour(x, y, padded, levels=[0.5], colors=[color], linestyles=line, linewidths=1.5)
    axis.plot(*view.cross, "+", color=BOX, markersize=8, markeredgewidth=1.4)
    if view.box is not None:
        (left, right), (low, high) = view.box
        axis.plot(
            [left, right, right, left, left], [low, low, high, high, low], color=BOX, linewidth=1, linestyle="dotted"
        )
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5))


def _turned(index: float, size: int, direction: float) -> float:
    return index if direction > 0 else size - 1 - index


def _window(volume: NDArray[Any]) -> tuple[float, float]:
    inside = volume[volume != 0]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 1.0)
    return float(min(low, 0.0)), float(max(high, low + 1e-6))
