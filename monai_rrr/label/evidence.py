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

"""From "evidence allowed" and "not allowed" to the mask that guides a heatmap."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_rrr.data.nifti import read_verified
from monai_rrr.utils.conventions import round_labels
from monai_rrr.utils.files import atomic_write
from monai_rrr.utils.nifti_file import header_geometry, nifti_bytes

__all__ = ["ALLOWED", "NOT_ALLOWED", "write_evidence", "write_marks"]

ALLOWED, NOT_ALLOWED = 1, 2
_ENHANCING = 3  # lies in all three regions


def write_evidence(drawn: Path, final: Path | None, target: Path) -> Path:
    """Write the label map whose regions are where evidence for that region is allowed.

    Evidence for a region is allowed in the region as it was drawn, where there is a drawing, and where "allowed" was
    drawn, but nowhere where "not allowed" was drawn. Where there is neither a drawing nor an "allowed" voxel, all the
    rest of the image is allowed: who says no more than "not here" said nothing about the rest.

    Args:
        drawn: evidence label: 1 allowed, 2 not allowed.
        final: tumor label map of the case: 1 necrotic core, 2 edema, 3 enhancing tumor. None: there is none.
        target: where to write, ``.nii.gz``, in the geometry of ``drawn``.

    Returns:
        the target.
    """
    volume = read_verified(drawn, field="evidence")
    marks = round_labels(volume.array)
    label = np.zeros(marks.shape, np.uint8)
    if final is not None:
        label[:] = round_labels(read_verified(final, field="final").array)
    if (marks == ALLOWED).any():
        label[marks == ALLOWED] = _ENHANCING
    elif final is None:
        label[:] = _ENHANCING
    label[marks == NOT_ALLOWED] = 0
    atomic_write(target, nifti_bytes(label, header_geometry(volume.header)))
    return target


def write_marks(drawn: Path, folder: Path) -> dict[str, Path]:
    """Write the two masks of an evidence label, as the manifest of mixed supervision names them.

    Args:
        drawn: evidence label: 1 allowed, 2 not allowed.
        folder: where to write.

    Returns:
        ``allowed`` and ``not_allowed``, those of which there is a voxel.
    """
    volume = read_verified(drawn, field="evidence")
    marks, stem = round_labels(volume.array), drawn.name.split(".")[0]
    found = {}
    for name, value in (("allowed", ALLOWED), ("not_allowed", NOT_ALLOWED)):
        mask = (marks == value).astype(np.uint8)
        if mask.any():
            found[name] = folder / f"{stem}_{name}.nii.gz"
            atomic_write(found[name], nifti_bytes(mask, header_geometry(volume.header)))
    return found
