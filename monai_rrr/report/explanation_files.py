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


"""Write what explains any network: heatmaps and masks as NIfTI, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from monai_rrr.metrics.threshold import apply_threshold, label_free_threshold
from monai_rrr.report.case_picture import CMAP, PRED, TITLES
from monai_rrr.report.explain import Explanation
from monai_rrr.report.pictures import opacity, render, style, visible_from
from monai_rrr.utils.checks import check_heatmaps
from monai_rrr.utils.files import safe_name
from monai_rrr.utils.nifti_file import affine_geometry, nifti_bytes
from monai_rrr.utils.provenance import Provenance, write_results

__all__ = ["explanation_figure", "write_explanation"]

Array = NDArray[Any]


def write_explanation(
    explanation: Explanation,
    image: Tensor,
    case_id: str,
    out: str | Path,
    modalities: Sequence[str],
    provenance: Provenance | None = None,
) -> list[Path]:
    """Write ``<case>_heatmap_class<k>.nii.gz``, ``<case>_mask_class<k>.nii.gz``, a picture and a record.

    In ``<out>/<case>``: the picture is ``<case>.png``, the record ``<case>_provenance.json``; all or none.
    Heatmaps are float32, masks uint8 (1: evidence above Otsu's threshold of the heatmap in the brain, which is where
    the image is not 0). Both lie where the image lies, for every reader.

    Args:
        explanation: of :func:`~monai_rrr.report.explain.explain_network`.
        image: ``MHWD``, the image that was explained.
        case_id: gives the names.
        out: folder, made when missing.
        modalities: names of the channels.
        provenance: what the explanation was made with.

    Returns:
        The files, the record last.

    Raises:
        InferenceError: ``heatmap-not-finite``.
    """
    classes = [f"class {index}" for index in explanation.class_idx]
    check_heatmaps(explanation.heatmap, case_id=case_id, regions=classes)
    stem = safe_name(case_id)
    channels = np.asarray(image, dtype=np.float32)
    brain = (channels != 0).any(0)
    masks = [apply_threshold(one, label_free_threshold(one, brain), brain=brain) for one in explanation.heatmap]
    geometry = explanation.header or affine_geometry(explanation.affine)
    contents: dict[str, bytes] = {}
    for index, heatmap, mask in zip(explanation.class_idx, explanation.heatmap, masks, strict=True):
        contents[f"_heatmap_class{index}.nii.gz"] = nifti_bytes(heatmap.astype(np.float32), geometry)
        contents[f"_mask_class{index}.nii.gz"] = nifti_bytes(mask.astype(np.uint8), geometry)
    with style():
        contents[".png"] = render(explanation_figure(explanation, channels, masks, modalities), "png", 110)
    return write_results(Path(out) / stem, stem, contents, provenance or Provenance(), explanation.inputs)


def explanation_figure(
    explanation: Explanation, channels: Array, masks: Sequence[Array], modalities: Sequence[str]
) -> Figure:
    """Draw one row per class, one column per modality: the axial slice with most evidence, in radiological view.

    Args:
        explanation: heatmaps, normalized to at most 1.
        channels: image, ``MHWD``.
        masks: one per class, outlined.
        modalities: names of the channels.
    """
    turn = nib.io_orientation(explanation.affine)
    spacing = np.linalg.norm(explanation.affine[:3, :3], axis=0)
    x, y = (float(spacing[int(np.flatnonzero(turn[:, 0] == axis)[0])]) for axis in (0, 1))
    layout = {"origin": "lower", "aspect": y / x, "interpolation": "bilinear"}
    size = (2.6 * len(channels) + 0.4, 2.9 * len(masks) + 0.4)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(len(masks), len(channels), squeeze=False)
    images = [_turned(channel, turn) for channel in channels]
    for row, (index, heatmap, mask) in enumerate(zip(explanation.class_idx, explanation.heatmap, masks, strict=True)):
        evidence, outline = _turned(heatmap, turn), _turned(mask, turn)
        depth = int(evidence.sum((0, 1)).argmax())
        start = visible_from(heatmap, (channels != 0).any(0))
        for axis, image, name in zip(axes[row], images, modalities, strict=True):
            axis.set_axis_off()
            axis.imshow(_plane(image, depth), cmap="gray", vmax=_bright(image), **layout)
            shown = _plane(evidence, depth)
            axis.imshow(shown, cmap=CMAP, vmin=0, vmax=1, alpha=opacity(shown, start), **layout)
            if outline[:, :, depth].any():
                axis.contour(_plane(outline, depth).astype(float), levels=[0.5], colors=[PRED], linewidths=1.2)
            axis.set_title(f"class {index}, {TITLES.get(name, name)}, slice {depth}")
    return figure


def _turned(array: Array, turn: Array) -> Array:
    return np.asarray(nib.apply_orientation(array, turn))


def _plane(array: Array, index: int) -> Array:
    plane: Array = array[::-1, :, index].T
    return plane


def _bright(image: Array) -> float:
    values = image[image != 0]
    return float(np.percentile(values, 99.5)) if values.size else 1.0
