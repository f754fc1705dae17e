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


"""Everything of one case that a picture shows, in one orientation and cropped to the brain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import generate_spatial_bounding_box
from numpy.typing import NDArray

from monai_rrr.data.nifti import NiftiVolume, read_images, read_verified
from monai_rrr.errors import DataError
from monai_rrr.transforms.regions import to_regions
from monai_rrr.utils.enums import MODALITIES, REGIONS
from monai_rrr.utils.files import safe_name

__all__ = ["CaseView", "load_case_view"]

MARGIN = 2


@dataclass(frozen=True)
class CaseView:
    """Arrays of one case, axes running right, anterior, superior, cropped to the brain.

    Args:
        case_id: name of the case.
        images: modality -> ``XYZ``.
        heatmaps: region -> fused heatmap ``XYZ`` in [0, 1].
        modality_heatmaps: (modality, region) -> heatmap ``XYZ`` in [0, 1]; those that were written.
        pred: region -> predicted mask, nested.
        truth: region -> true mask, nested; empty mapping when the case has no label.
        affine: 4x4, voxel of the crop to mm.
        first_slice: axial slice of the case that is slice 0 here.
    """

    case_id: str
    images: Mapping[str, NDArray[np.float32]]
    heatmaps: Mapping[str, NDArray[np.float32]]
    modality_heatmaps: Mapping[tuple[str, str], NDArray[np.float32]]
    pred: Mapping[str, NDArray[np.bool_]]
    truth: Mapping[str, NDArray[np.bool_]]
    affine: NDArray[np.float64]
    first_slice: int

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        x, y, z = (float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def brain(self) -> NDArray[np.bool_]:
        """``XYZ``: where any image is not 0."""
        inside: NDArray[np.bool_] = np.any([image != 0 for image in self.images.values()], axis=0)
        return inside

    def slice_of(self, region: str) -> int:
        """Axial slice with the largest true area; without any truth, the one with the most evidence in the heatmap."""
        area = self.truth[region].sum((0, 1)) if region in self.truth else np.zeros(1)
        if not area.any():
            area = self.heatmaps[region].sum((0, 1))
        return int(area.argmax())


def load_case_view(case: Mapping[str, Any], folder: str | Path, convention: str) -> CaseView:
    """Read images and, if there, the label of a case, and what inference wrote for it.

    Args:
        case: entry of the datalist.
        folder: holds ``<case>/<case>_heatmap_<region>.nii.gz`` and ``<case>_pred.nii.gz``.
        convention: of the label and of the prediction.

    Raises:
        DataError: When a heatmap or the prediction is missing, a file is damaged, or grids differ.
    """
    case_id = str(case["case_id"])
    stem = safe_name(case_id)
    root = Path(folder) / stem
    images = {name: image.canonical() for name, image in read_images(case).items()}
    first = next(iter(images.values()))
    fused = {region: _written(root / f"{stem}_heatmap_{region}.nii.gz", case_id, first) for region in REGIONS}
    single = {
        (name, region): _written(path, case_id, first)
        for name in MODALITIES
        for region in REGIONS
        if (path := root / f"{stem}_heatmap_{name}_{region}.nii.gz").is_file()
    }
    pred = _regions(_written(root / f"{stem}_pred.nii.gz", case_id, first), convention)
    truth = {}
    if "label" in case:
        label = read_verified(case["label"], case_id=case_id, field="label").canonical()
        truth = _regions(np.ascontiguousarray(label.array), convention)
    box = _brain_box(images)
    return CaseView(
        case_id=case_id,
        images={name: image.array[box].astype(np.float32) for name, image in images.items()},
        heatmaps={name: array[box].astype(np.float32) for name, array in fused.items()},
        modality_heatmaps={name: array[box].astype(np.float32) for name, array in single.items()},
        pred={name: array[box] for name, array in pred.items()},
        truth={name: array[box] for name, array in truth.items()},
        affine=_moved(first.affine, box),
        first_slice=int(box[2].start),
    )


def _written(path: Path, case_id: str, like: NiftiVolume) -> NDArray[Any]:
    if not path.is_file():
        hint = "inference or evaluation of the bundle writes it"
        raise DataError(
            "result-missing", "expected a result of this case, got no file", case_id=case_id, path=path, hint=hint
        )
    array = np.ascontiguousarray(read_verified(path, case_id=case_id).canonical().array)
    if array.shape != like.array.shape:
        message = f"expected shape {like.array.shape} as the images, got {array.shape}"
        raise DataError("shape-mismatch", message, case_id=case_id, path=path)
    return array


def _regions(label: NDArray[Any], convention: str) -> dict[str, NDArray[np.bool_]]:
    masks = np.asarray(to_regions(label, convention)).astype(bool)
    return dict(zip(REGIONS, masks, strict=True))


def _brain_box(images: Mapping[str, NiftiVolume]) -> tuple[slice, slice, slice]:
    brain = np.any([image.array != 0 for image in images.values()], axis=0)
    start, end = generate_spatial_bounding_box(brain[None], margin=MARGIN, allow_smaller=False)
    x, y, z = (slice(max(0, int(a)), min(int(b), n)) for a, b, n in zip(start, end, brain.shape, strict=True))
    return x, y, z


def _moved(affine: NDArray[np.float64], box: tuple[slice, slice, slice]) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array([part.start for part in box], dtype=np.float64)
    return moved
