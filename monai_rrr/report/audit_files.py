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

"""Evidence for an audit from the heatmaps that a bundle's inference wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import from_numpy

from monai_rrr.data.nifti import NiftiVolume, read_images, read_verified
from monai_rrr.errors import DataError
from monai_rrr.metrics.localization import energy_share
from monai_rrr.report.audit_case import Evidence, canonical_spacing
from monai_rrr.report.audit_network import lesion_of
from monai_rrr.utils.files import safe_name

__all__ = ["evidence_of_files", "written_heatmap"]


def evidence_of_files(case: Mapping[str, Any], folder: str | Path, region: str, convention: str) -> Evidence:
    """Read the fused heatmap of a region, and the share of its own evidence that each modality puts into the lesion.

    Args:
        case: entry of a datalist; its label is used when there is one.
        folder: holds ``<case>/<case>_heatmap_<region>.nii.gz`` and, where there is one map per modality,
            ``<case>/<case>_heatmap_<modality>_<region>.nii.gz``.
        region: ``"WT"``, ``"TC"`` or ``"ET"``.
        convention: label convention of the label.

    Raises:
        DataError: When a heatmap is missing, a file is damaged, or grids differ.
    """
    case_id = str(case["case_id"])
    images = read_images(case)
    first = next(iter(images.values()))
    lesion = lesion_of(case, region, convention, first.array.shape)
    single = {
        name: written_heatmap(folder, case_id, f"{name}_{region}", first)
        for name in images
        if heatmap_path(folder, case_id, f"{name}_{region}").is_file()
    }
    shares = {}
    if lesion is not None and lesion.any():
        shares = {name: _share(heatmap, lesion) for name, heatmap in single.items()}
    return Evidence(
        case_id=case_id,
        heatmap=written_heatmap(folder, case_id, region, first),
        images={name: image.canonical().array.astype(np.float32) for name, image in images.items()},
        lesion=lesion,
        spacing=canonical_spacing(first.affine),
        class_name=region,
        modalities=shares,
    )


def heatmap_path(folder: str | Path, case_id: str, name: str) -> Path:
    """Where inference writes a heatmap."""
    stem = safe_name(case_id)
    return Path(folder) / stem / f"{stem}_heatmap_{name}.nii.gz"


def written_heatmap(
    folder: str | Path, case_id: str, name: str, like: NiftiVolume | None = None
) -> NDArray[np.float32]:
    """Read a heatmap, axes running right, anterior, superior.

    Args:
        folder: see :func:`evidence_of_files`.
        case_id: name of the case.
        name: region, or modality and region.
        like: image whose grid it must have.

    Raises:
        DataError: When there is none, or it has another shape.
    """
    path = heatmap_path(folder, case_id, name)
    if not path.is_file():
        message = "expected a heatmap of this case, got no file"
        hint = "inference of the bundle writes it"
        raise DataError("result-missing", message, case_id=case_id, field=name, path=path, hint=hint)
    image = read_verified(path, case_id=case_id, field=name)
    if like is not None and image.array.shape != like.array.shape:
        message = f"expected shape {like.array.shape} as the images, got {image.array.shape}"
        raise DataError("shape-mismatch", message, case_id=case_id, field=name, path=path)
    return np.ascontiguousarray(image.canonical().array, dtype=np.float32)


def _share(heatmap: NDArray[np.float32], lesion: NDArray[np.bool_]) -> float:
    region = from_numpy(np.ascontiguousarray(lesion))
    return float(energy_share(from_numpy(heatmap)[None, None], region[None, None]))
