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


"""Everything of one case that several annotators draw: what they drew, what was predicted for them, whose habit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from monai_rrr.data.load_annotations import LoadAnnotationsd
from monai_rrr.data.nifti import read_images, read_verified
from monai_rrr.report.annotator_run import AnnotatorRun
from monai_rrr.utils.class_map import to_classes
from monai_rrr.utils.conventions import get_convention
from monai_rrr.utils.files import safe_name

__all__ = ["AnnotatorView", "load_annotator_view"]


VISIBLE_BITS = 0.1
"""Disagreement from which on it is shown."""


@dataclass(frozen=True)
class AnnotatorView:
    """Arrays of one case, axes running right, anterior, superior; classes 0 background, 1 NCR, 2 ED, 3 ET.

    Args:
        case_id: name of the case.
        annotators: ids.
        images: modality -> ``XYZ``.
        consensus: classes of the consensus, ``XYZ``.
        versions: classes of the network's version for each annotator, ``RXYZ``.
        drawn: classes that each annotator drew, ``RXYZ``; -1 where not known.
        who: ``XYZ``, 0 where all share, then 1 + the place among ``annotators``.
        disagreement: ``XYZ``, between the annotators, in bits.
        spacing: of the voxels, in mm.
    """

    case_id: str
    annotators: tuple[str, ...]
    images: Mapping[str, NDArray[Any]]
    consensus: NDArray[Any]
    versions: NDArray[Any]
    drawn: NDArray[Any]
    who: NDArray[Any]
    disagreement: NDArray[Any]
    spacing: tuple[float, float, float]

    @property
    def disputed(self) -> NDArray[np.bool_]:
        """Where annotators disagree enough to be looked at; small values are everywhere in the brain."""
        return np.asarray(self.disagreement > VISIBLE_BITS)

    @property
    def depth(self) -> int:
        """Axial slice with most disagreement; without any, with most tumor of the consensus."""
        area = self.disputed if self.disputed.any() else self.consensus > 0
        return int(area.sum((0, 1)).argmax())

    @property
    def box(self) -> tuple[slice, slice]:
        """The brain in this slice."""
        brain = np.any([image[:, :, self.depth] != 0 for image in self.images.values()], axis=0)
        if not brain.any():
            return slice(0, brain.shape[0]), slice(0, brain.shape[1])
        x, y = (np.flatnonzero(brain.any(axis)) for axis in (1, 0))
        return slice(int(x[0]), int(x[-1]) + 1), slice(int(y[0]), int(y[-1]) + 1)

    def compared(self, masks: NDArray[Any], consensus: NDArray[Any]) -> dict[str, Any]:
        """Masks beside a consensus, as :func:`~monai_rrr.report.annotator_cards` wants a case."""
        return {"case_id": self.case_id, "spacing": self.spacing, "annotations": masks, "consensus": consensus}


def load_annotator_view(run: AnnotatorRun, case: Mapping[str, Any], convention: str) -> AnnotatorView:
    """Read a case, what was drawn of it, and what evaluation wrote for it.

    Args:
        run: with the results.
        case: entry of the datalist, with ``annotations``.
        convention: of masks and predictions.

    Raises:
        DataError: When a result is missing, or a file is damaged or of another convention.
    """
    case_id, rule = str(case["case_id"]), get_convention(convention)

    def result(name: str) -> NDArray[Any]:
        volume = read_verified(run.file(case_id, f"{name}.nii.gz"), case_id=case_id).canonical()
        return np.ascontiguousarray(volume.array)

    images = {name: image.canonical() for name, image in read_images(case).items()}
    affine = next(iter(images.values())).affine
    consensus = to_classes(result("seg_consensus"), rule)
    grid = MetaTensor(torch.from_numpy(consensus[None].copy()), affine=torch.from_numpy(affine.copy()))
    load = LoadAnnotationsd(run.annotators, rule)
    sample = load({"case_id": case_id, "image": grid, "annotations": case.get("annotations")})
    x, y, z = (float(size) for size in np.linalg.norm(affine[:3, :3], axis=0))
    return AnnotatorView(
        case_id=case_id,
        annotators=run.annotators,
        images={name: image.array.astype(np.float32) for name, image in images.items()},
        consensus=consensus,
        versions=np.stack([to_classes(result(f"seg_{safe_name(name)}"), rule) for name in run.annotators]),
        drawn=sample["annotations"].as_tensor().numpy(),
        who=result("who"),
        disagreement=result("disagreement_js"),
        spacing=(x, y, z),
    )
