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

"""How much of a heatmap's evidence lies in the lesion, in the rest of the brain and outside of it, in one case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from monai_rrr.metrics.localization import energy_share, pointing_game

__all__ = ["PLACES", "CaseAudit", "Evidence", "brain_mask", "measure"]

PLACES = ("lesion", "rest of the brain", "outside of the brain")
STRIPPED = 0.9
"""Images whose background is smaller than the rest to this are not skull-stripped: nothing counts as outside."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """What an audit needs of one case, axes running right, anterior, superior.

    Args:
        case_id: name of the case.
        heatmap: ``XYZ``, larger is more evidence; what is negative doesn't count.
        images: modality -> ``XYZ``.
        lesion: ``XYZ``; None when there is no mask.
        spacing: voxel size in mm.
        class_name: what is explained, such as ``"class 1"`` or ``"WT"``.
        probability: of that class; None when there is none for the whole case.
        modalities: modality -> what it contributes; see the maker of the evidence.
    """

    case_id: str
    heatmap: NDArray[np.float32]
    images: Mapping[str, NDArray[np.float32]]
    lesion: Mask | None
    spacing: tuple[float, float, float]
    class_name: str
    probability: float | None = None
    modalities: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseAudit:
    """Numbers of one case; shares sum to 1 over :data:`PLACES`, NaN where they are not defined.

    Args:
        case_id: name of the case.
        class_name: what is explained.
        probability: of the explained class.
        has_lesion: whether there is a mask with a lesion in it.
        shares: of the heatmap's positive evidence. Without a lesion its share is NaN.
        brain_shares: of a map that is uniform in the brain.
        uniform_shares: of a map that is uniform in the box around the head, which the network sees.
        hit: 1 when the strongest voxel lies within the tolerance of the lesion, else 0.
        modalities: modality -> what it contributes.
        stripped: whether the background is 0, so that there is an outside of the brain.
    """

    case_id: str
    class_name: str
    probability: float | None
    has_lesion: bool
    shares: Mapping[str, float]
    brain_shares: Mapping[str, float]
    uniform_shares: Mapping[str, float]
    hit: float
    modalities: Mapping[str, float]
    stripped: bool

    @property
    def lift(self) -> float:
        """Share of the lesion over that of a map that is uniform in the brain: 1 is no better than chance."""
        return self.shares[PLACES[0]] / self.brain_shares[PLACES[0]] if self.has_lesion else float("nan")

    @property
    def badness(self) -> float:
        """Share of the evidence where it should not be: beside the lesion or, without one, outside of the brain."""
        found = 1 - self.shares[PLACES[0]] if self.has_lesion else self.shares[PLACES[2]]
        return found if np.isfinite(found) else 2.0


def brain_mask(images: Mapping[str, NDArray[Any]]) -> Mask:
    """Return the brain of skull-stripped images: what isn't 0, in one piece, without holes and without thin marks.

    Letters, lines and residues of skull stripping beside the brain are not part of it. Images whose background isn't 0
    give the whole volume.

    Args:
        images: modality -> ``XYZ``.
    """
    foreground: Mask = np.any([image != 0 for image in images.values()], axis=0)
    if foreground.mean() >= STRIPPED or not foreground.any():
        return np.ones_like(foreground)
    opened = ndimage.binary_opening(foreground)
    pieces, count = ndimage.label(opened if opened.any() else foreground)
    largest = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel(), minlength=count + 1)[1:]))
    return np.asarray(ndimage.binary_fill_holes(ndimage.binary_dilation(largest) & foreground), bool)


def measure(evidence: Evidence, tolerance_mm: float = 5.0) -> CaseAudit:
    """Measure one case.

    Args:
        evidence: heatmap, images and mask.
        tolerance_mm: of the pointing game.
    """
    brain = brain_mask(evidence.images)
    lesion = np.zeros_like(brain) if evidence.lesion is None else evidence.lesion
    parts = dict(zip(PLACES, (lesion, brain & ~lesion, ~brain & ~lesion), strict=True))
    foreground = np.any([image != 0 for image in evidence.images.values()], axis=0)
    box = np.zeros_like(brain)
    box[ndimage.find_objects(foreground.astype(np.uint8))[0]] = True
    has_lesion = bool(lesion.any())
    heatmap = torch.from_numpy(np.ascontiguousarray(evidence.heatmap))[None, None].float()
    mask = torch.from_numpy(np.ascontiguousarray(lesion))[None, None]
    return CaseAudit(
        case_id=evidence.case_id,
        class_name=evidence.class_name,
        probability=evidence.probability,
        has_lesion=has_lesion,
        shares=_shares(heatmap, parts, has_lesion),
        brain_shares=_shares(_volume(brain), parts, has_lesion),
        uniform_shares=_shares(_volume(box), parts, has_lesion),
        hit=float(pointing_game(heatmap, mask, evidence.spacing, tolerance_mm)),
        modalities=evidence.modalities,
        stripped=not bool(brain.all()),
    )


def _volume(mask: Mask) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


def _shares(heatmap: torch.Tensor, parts: Mapping[str, Mask], has_lesion: bool) -> dict[str, float]:
    found = {
        name: float(energy_share(heatmap, torch.from_numpy(np.ascontiguousarray(part))[None, None]))
        for name, part in parts.items()
    }
    return found if has_lesion else {**found, PLACES[0]: float("nan")}


def canonical(array: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Turn an array so that its axes run right, anterior, superior."""
    return np.asarray(nib.apply_orientation(array, nib.io_orientation(affine)))


def canonical_spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Voxel size in mm along right, anterior, superior."""
    size, order = np.linalg.norm(affine[:3, :3], axis=0), nib.io_orientation(affine)[:, 0]
    x, y, z = (float(size[int(np.flatnonzero(order == axis)[0])]) for axis in range(3))
    return x, y, z
