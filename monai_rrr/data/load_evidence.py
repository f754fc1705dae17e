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

"""Marks of where evidence may lie, drawn by people, as a transform of a MONAI pipeline."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample, Transform
from numpy.typing import NDArray
from torch import Tensor

from monai_rrr.data.load_annotations import grid_affine
from monai_rrr.data.nifti import read_verified
from monai_rrr.utils.distance import signed_distance

__all__ = ["LoadEvidenced"]


class LoadEvidenced(Transform):
    """Replace the paths of ``evidence`` by one mask of where evidence may lie, on the grid of the image.

    ``allowed`` is a box or a rough outline that holds all the evidence: what is not in it is not allowed.
    ``not_allowed`` is a scribble or a box on what must not count: everything else stays as it is. Any value but 0
    counts as drawn. With both, evidence may lie where it is allowed and not forbidden. The sample gets ``evidence``
    (uint8, ``1XYZ``, 1 = allowed); a case without marks is left alone. Nothing is random, so MONAI's ``CacheDataset``
    keeps the result.

    Args:
        reach: mm around ``not_allowed`` that count as well. Heatmaps are coarse, and a cell of theirs is forbidden only
            where none of its voxels is allowed, so that a thin scribble alone would change nothing.
        image_key: image that gives the grid: that of :class:`~monai_rrr.data.LoadBrainBoxd`, or of our ``WholeVolumed``
            after it, or a ``MetaTensor``.

    Raises:
        DataError: When a file is damaged.
        ValueError: When ``reach`` is negative.

    Example:
        >>> LoadEvidenced()({"case_id": "a", "image": torch.zeros(4, 2, 2, 2)}).keys()
        dict_keys(['case_id', 'image'])
    """

    def __init__(self, reach: float = 6.0, image_key: str = "image") -> None:
        if reach < 0:
            raise ValueError(f"reach must be at least 0 mm, got {reach}")
        self.reach, self.image_key = reach, image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with the mask."""
        result, paths = dict(data), data.get("evidence")
        if not paths:
            return result
        image, case_id = data[self.image_key], str(data.get("case_id"))
        affine = torch.as_tensor(grid_affine(data, image), dtype=torch.float64)
        evidence = torch.ones(1, *image.shape[1:], dtype=torch.uint8)
        for kind, path in paths.items():
            volume = read_verified(path, case_id=case_id, field=f"evidence {kind}").canonical()
            mask: NDArray[np.bool_] = np.asarray(volume.array) != 0
            if kind == "not_allowed" and self.reach and mask.any():
                mask = signed_distance(mask, np.linalg.norm(volume.affine[:3, :3], axis=0).tolist()) >= -self.reach
            drawn = self._moved(mask, volume.affine, affine, tuple(image.shape[1:]))
            evidence &= drawn if kind == "allowed" else 1 - drawn
        result["evidence"] = evidence
        return result

    @staticmethod
    def _moved(mask: NDArray[np.bool_], source: NDArray[np.float64], affine: Tensor, shape: tuple[int, ...]) -> Tensor:
        array = MetaTensor(torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None], affine=torch.tensor(source))
        resample = SpatialResample(mode="nearest", padding_mode="zeros")
        moved: Tensor = resample(array, dst_affine=affine, spatial_size=shape).as_subclass(Tensor)
        return moved.round().to(torch.uint8)
