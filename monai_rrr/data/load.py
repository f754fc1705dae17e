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

"""Case in, brain box out, as the first transform of a MONAI pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample, Transform
from nibabel.orientations import io_orientation

from monai_rrr.data.brain_box import tag_extents
from monai_rrr.data.cache import BrainBoxCache
from monai_rrr.data.nifti import check_sha256, locate, read_verified
from monai_rrr.data.tags import check_tags
from monai_rrr.errors import DataError
from monai_rrr.utils.conventions import round_labels

__all__ = ["LoadBrainBoxd"]

UINT8_MAX = 255


class LoadBrainBoxd(Transform):
    """Replace a case of a datalist by its brain box as a dictionary, with its slice tags when there are any.

    The result has the fields of :class:`BrainBox` and ``tags`` (float64, ``(3, 2)``, NaN for absent regions). Arrays
    are mapped from the cache, so plain ``monai.data.Dataset`` is as fast as one that keeps everything in memory.

    Args:
        cache: where the brain boxes are.
        tags: case id -> tags of that case. None: no case has tags, as for inference.
        with_label: also read the voxel mask, as ``label`` (uint8, ``1XYZ``) on the grid of the box, nearest voxel; for
            training with masks, never for training by tags. None: where the case has one.
        partial: a case without tags is unlabeled instead of an error.

    Raises:
        DataError: When ``tags`` are given, but not for this case or outside the image, or a label is wanted and
            missing, or no label, or not the one that was verified.

    Example:
        >>> from monai.data import Dataset
        >>> from monai.transforms import Compose
        >>> from monai_rrr.transforms import RandSlabd
        >>> load = LoadBrainBoxd(BrainBoxCache("cache", spacing=3.0), tags)  # doctest: +SKIP
        >>> dataset = Dataset(cases, Compose([load, RandSlabd((64, 80, 16), spacing=3.0)]))  # doctest: +SKIP
    """

    def __init__(
        self,
        cache: BrainBoxCache,
        tags: Mapping[str, Mapping[str, tuple[int, int] | None]] | None = None,
        with_label: bool | None = False,
        partial: bool = False,
    ) -> None:
        self.cache = cache
        self.tags = tags
        self.with_label = with_label
        self.partial = partial

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the brain box of a case."""
        case_id = str(data["case_id"])
        box = self.cache.get(data)
        extents = None
        if self.tags is not None and (case_id in self.tags or not self.partial):
            if case_id not in self.tags:
                raise DataError(
                    "tags-missing",
                    f"expected slice tags of this case, there are tags of {len(self.tags)} other cases",
                    case_id=case_id,
                    field="tags",
                    hint="add a row for it, with blank cells for absent regions",
                )
            axes = io_orientation(box.source_affine)[:, 0].tolist()
            check_tags(self.tags[case_id], slices=box.source_shape[axes.index(2)], case_id=case_id)
            extents = tag_extents(self.tags[case_id])
        result = box.as_dict()
        if extents is not None:
            result["tags"] = extents
        if self.with_label or (self.with_label is None and "label" in data):
            result["label"] = self._label(data, result)
        # annotations, evidence: paths, for LoadAnnotationsd and LoadEvidenced; request: of a server, see CaseOfImaged
        result.update({key: data[key] for key in ("annotations", "evidence", "request") if key in data})
        return result

    def _label(self, data: Mapping[str, Any], box: Mapping[str, Any]) -> torch.Tensor:
        case_id = str(data["case_id"])
        if "label" not in data:
            raise DataError("label-missing", "expected a voxel mask of this case", case_id=case_id, field="label")
        path = data["label"]
        volume = read_verified(path, case_id=case_id, field="label").canonical()
        owner = str(data.get("label_of", case_id))  # masks of other cases, see keep_labels
        check_sha256(volume.sha256, self.cache.hashes.get(owner, {}).get("label"), case_id, "label", path)
        try:
            values = round_labels(volume.array)
        except DataError as error:
            raise locate(error, case_id, "label", path) from None
        if not (values.min() >= 0 and values.max() <= UINT8_MAX):
            message = f"expected label values from 0 to {UINT8_MAX}, got {values.min()} to {values.max()}"
            raise DataError("label-values", message, case_id=case_id, field="label", path=path)
        array = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        image = MetaTensor(array[None], affine=torch.from_numpy(volume.affine))
        resample = SpatialResample(mode="nearest", padding_mode="zeros")
        moved = resample(image, dst_affine=torch.from_numpy(box["affine"]), spatial_size=box["brain"].shape)
        plain: torch.Tensor = moved.as_subclass(torch.Tensor)
        return plain.round().to(torch.uint8)
