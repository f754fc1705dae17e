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

"""A whole brain on the network's grid, for inference, with the way back to the source file's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep

from monai_rrr.transforms.resample import resample_box
from monai_rrr.transforms.slab_grid import centered_matrix, check_size, check_spacing, slab_slice_label, slab_step
from monai_rrr.utils.enums import RRRKeys

__all__ = ["WholeVolumed"]

_KEPT = ("source_header", "source_sha256", "annotations", "request")


class WholeVolumed(MapTransform):
    """Sample a whole brain box on the grid of the network, without randomness.

    Output is that of :class:`RandSlabd` for one slab that holds the whole brain, and ``geometry``: ``affine`` (slab
    voxel -> world, 4x4), ``source_affine`` and ``source_shape``, as :func:`to_source_grid` wants them. What the box
    knows of its source files (``source_header``, ``source_sha256``), paths of ``annotations`` and the ``request`` of a
    server are passed on.

    Args:
        roi_size: least size ``X, Y, D`` in voxels; an axis that is too small for the brain grows.
        spacing: voxel size in mm, one number or one per axis; less than twice as coarse as the box.
        multiple: sizes are multiples of this, one number or one per axis.
        clip: largest absolute value of the image, in standard deviations.

    Example:
        >>> box = dict(image=np.ones((4, 8, 8, 9), np.int16), brain=np.ones((8, 8, 9), bool), present=np.ones(4, bool),
        ...            mean=np.zeros(4), std=np.ones(4), affine=np.eye(4), tag_grid=(1.0, 0.0), case_id="a",
        ...            source_affine=np.eye(4), source_shape=np.array([8, 8, 9]))
        >>> WholeVolumed((4, 12, 4), spacing=1.0, multiple=(4, 4, 2))(box)["image"].shape
        torch.Size([4, 8, 12, 10])
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        spacing: float | Sequence[float],
        multiple: int | Sequence[int] = 1,
        clip: float = 10.0,
    ) -> None:
        super().__init__(RRRKeys.IMAGE)
        self.roi_size = check_size(roi_size)
        self.spacing = check_spacing(spacing)
        self.multiple = check_size(ensure_tuple_rep(multiple, 3))
        self.clip = clip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the whole brain as one slab."""
        step = slab_step(data, self.spacing)
        shape = data[RRRKeys.BRAIN].shape
        needed = np.maximum(np.ceil(np.asarray(shape) / step - 1e-6).astype(int), self.roi_size)
        size = check_size([-(-int(n) // m) * m for n, m in zip(needed, self.multiple, strict=True)])
        matrix = centered_matrix(step, size, shape)
        image, brain = resample_box(data, matrix, size, self.clip)
        labels = slab_slice_label(data, matrix, size[2])
        return {
            **data.get("request", {}),  # a server looks for its own fields after preprocessing
            RRRKeys.CASE_ID: data[RRRKeys.CASE_ID],
            RRRKeys.IMAGE: image,
            RRRKeys.BRAIN: brain,
            RRRKeys.PRESENT: torch.as_tensor(np.array(data[RRRKeys.PRESENT], dtype=bool)),
            RRRKeys.CLASS_LABEL: labels.amax(dim=1),
            RRRKeys.SLICE_LABEL: labels,
            "geometry": {
                "affine": np.asarray(data["affine"], dtype=np.float64) @ matrix,
                "source_affine": np.asarray(data["source_affine"], dtype=np.float64),
                "source_shape": np.asarray(data["source_shape"], dtype=np.int64),
            },
            **{key: data[key] for key in _KEPT if key in data},
        }
