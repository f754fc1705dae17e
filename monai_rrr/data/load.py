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

from monai_rrr.data.brain_box import tag_extents
from monai_rrr.data.cache import BrainBoxCache
from monai_rrr.data.nifti import read_verified
from monai_rrr.errors import DataError

__all__ = ["LoadBrainBoxd"]


class LoadBrainBoxd(Transform):
    """Replace a case of a datalist by its brain box as a dictionary, with its slice tags when there are any.

    The result has the fields of :class:`BrainBox` and ``tags`` (float64, ``(3, 2)``, NaN for absent regions). Arrays
    are mapped from the cache, so plain ``monai.data.Dataset`` is as fast as one that keeps everything in memory.

    Args:
        cache: where the brain boxes are.
        tags: case id -> tags of that case. None: no case has tags, as for inference.
        with_label: also read the voxel mask, as ``label`` (uint8, ``1XYZ``) on the grid of the box, nearest voxel; for
            references with full supervision, never for training by tags alone. ``None`` takes what there is, for
            cohorts with few masks.

    Raises:
        DataError: When ``tags`` are given, but not for this case, or a label is wanted and missing.

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
    ) -> None:
        self.cache = cache
        self.tags = tags
        self.with_label = with_label

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the brain box of a case."""
        case_id = str(data["case_id"])
        extents = None
        if self.tags is not None:
            if case_id not in self.tags:
                raise DataError(
                    "tags-missing",
                    f"expected slice tags of this case, there are tags of {len(self.tags)} other cases",
                    case_id=case_id,
                    field="tags",
                    hint="add a row for it, with blank cells for absent regions",
                )
            extents = tag_extents(self.tags[case_id])
        result = self.cache.get(data).as_dict()
        if extents is not None:
            result["tags"] = extents
        if self.with_label or (self.with_label is None and "label" in data):
            result["label"] = self._label(data, result)
        return result

    def _label(self, data: Mapping[str, Any], box: Mapping[str, Any]) -> torch.Tensor:
        case_id = str(data["case_id"])
        if "label" not in data:
            raise DataError("label-missing", "expected a voxel mask of this case", case_id=case_id, field="label")
        volume = read_verified(data["label"], case_id=case_id, field="label").canonical()
        array = torch.from_numpy(np.ascontiguousarray(volume.array)).float()
        image = MetaTensor(array[None], affine=torch.from_numpy(volume.affine))
        resample = SpatialResample(mode="nearest", padding_mode="zeros")
        moved = resample(image, dst_affine=torch.from_numpy(box["affine"]), spatial_size=box["brain"].shape)
        plain: torch.Tensor = moved.as_subclass(torch.Tensor)
        return plain.round().to(torch.uint8)
