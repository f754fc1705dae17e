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

"""Slabs of a brain box for training: position and spatial augmentation in one resampling step."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from numpy.typing import NDArray

from monai_rrr.transforms.resample import resample_box, resample_classes, resample_label
from monai_rrr.transforms.slab_grid import centered_matrix, check_size, check_spacing, slab_slice_label, slab_step
from monai_rrr.utils.enums import RRRKeys

__all__ = ["RandSlabd"]


class RandSlabd(RandomizableTransform, MapTransform):
    """Draw one slab of axial slices with full in-plane extent from a brain box.

    The slab's center is uniform over the slices of the brain box, moved inwards as far as needed to keep the slab
    inside it; neither masks nor tags influence it. In-plane, the slab is centered on the box. Rotation, scale, shift
    and tilt are one composed affine with the resampling to ``spacing``, so that every voxel is interpolated once.

    Input is the dictionary of :class:`monai_rrr.data.LoadBrainBoxd`. Output: ``image`` (float32, ``MXYD``, standardized
    inside the brain, 0 outside and for absent modalities), ``brain`` (bool, ``1XYD``), ``present`` (bool, ``M``),
    ``slice_label`` (float32, ``3D``), ``class_label`` (float32, ``3``: any slice tagged), ``case_id`` and, if the
    box has them, ``label`` (float32, ``KXYD``), ``evidence`` (float32, ``1XYD``) and ``annotations`` (int8, ``RXYD``)
    with ``annotated`` and ``annotator_weight``.

    A slab slice counts as tagged when it holds at least a quarter of a tagged slice of the case, so that a negative
    slice is certainly negative although it may average several. Labels of a case without tags are NaN.
    With ``tilt`` a slab slice is no slice of the case: ``slice_label`` is NaN then, and ``class_label`` that of the
    untilted slab.

    Args:
        roi_size: ``X, Y, D`` of the slab in voxels.
        spacing: voxel size of the slab in mm, one number or one per axis; less than twice as coarse as the box.
        rotate: largest in-plane rotation, degrees, either way.
        scale: smallest and largest in-plane magnification.
        translate: largest in-plane shift in mm, along each axis, either way.
        flip_prob: probability of a left-right mirroring.
        tilt: largest rotation about each in-plane axis, degrees, either way.
        prob: probability of the affine (rotation, scale, shift, tilt).
        clip: largest absolute value of the image, in standard deviations.

    Raises:
        ValueError: When the box is so fine that the slab would skip voxels.

    Example:
        >>> box = dict(image=np.ones((4, 8, 8, 9), np.int16), brain=np.ones((8, 8, 9), bool), present=np.ones(4, bool),
        ...            mean=np.zeros(4), std=np.ones(4), affine=np.eye(4), tag_grid=(1.0, 0.0), case_id="a",
        ...            tags=np.array([[2, 4], [3, 3], [np.nan, np.nan]]))
        >>> slab = RandSlabd((8, 8, 9), spacing=1.0)(box)
        >>> slab["slice_label"][0].tolist(), slab["class_label"].tolist()
        ([0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0])
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        spacing: float | Sequence[float],
        rotate: float = 0.0,
        scale: Sequence[float] = (1.0, 1.0),
        translate: float = 0.0,
        flip_prob: float = 0.0,
        tilt: float = 0.0,
        prob: float = 1.0,
        clip: float = 10.0,
    ) -> None:
        MapTransform.__init__(self, RRRKeys.IMAGE)
        RandomizableTransform.__init__(self, prob)
        self.roi_size = check_size(roi_size)
        self.spacing = check_spacing(spacing)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be (smallest, largest) with 0 < smallest <= largest, got {tuple(scale)}")
        if min(rotate, translate, tilt) < 0 or not 0 <= flip_prob <= 1:
            raise ValueError(
                "rotate, translate and tilt must not be negative and flip_prob must be a probability, "
                f"got {rotate}, {translate}, {tilt} and {flip_prob}"
            )
        self.rotate = rotate
        self.scale = (float(scale[0]), float(scale[1]))
        self.translate = translate
        self.flip_prob = flip_prob
        self.tilt = tilt
        self.clip = clip
        self._linear = np.eye(3)
        self._shift = np.zeros(3)
        self._height = 0.5

    def randomize(self, data: Any | None = None) -> None:
        """Draw position and affine. The number of draws is always the same, so that options don't shift later ones."""
        super().randomize(None)
        draw = self.R.uniform(-1.0, 1.0, size=8)
        self._height = (draw[0] + 1) / 2
        self._linear, self._shift = np.eye(3), np.zeros(3)
        if self._do_transform:
            low, high = self.scale
            magnification = low + (draw[1] + 1) / 2 * (high - low)
            in_plane = np.diag([1 / magnification, 1 / magnification, 1.0])
            angles = np.radians([self.tilt * draw[2], self.tilt * draw[3], self.rotate * draw[4]])
            for axis, angle in enumerate(angles):
                self._linear = _rotation(axis, angle) @ self._linear
            self._linear = self._linear @ in_plane
            self._shift[:2] = self.translate * draw[5:7]
        if (draw[7] + 1) / 2 < self.flip_prob:
            self._linear = self._linear @ np.diag([-1.0, 1.0, 1.0])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the slab of a brain box."""
        self.randomize()
        matrix = self._matrix(data)
        image, brain = resample_box(data, matrix, self.roi_size, self.clip)
        untilted = slab_slice_label(data, matrix, self.roi_size[2])
        labels = torch.full_like(untilted, math.nan) if self.tilt > 0 else untilted
        slab: dict[Hashable, Any] = {
            RRRKeys.CASE_ID: data[RRRKeys.CASE_ID],
            RRRKeys.IMAGE: image,
            RRRKeys.BRAIN: brain,
            RRRKeys.PRESENT: torch.as_tensor(np.array(data[RRRKeys.PRESENT], dtype=bool)),
            RRRKeys.CLASS_LABEL: untilted.amax(dim=1),
            RRRKeys.SLICE_LABEL: labels,
        }
        for key in (RRRKeys.LABEL, "evidence"):
            if isinstance(data.get(key), (torch.Tensor, np.ndarray)):
                slab[key] = resample_label(data, matrix, self.roi_size, key)
        if isinstance(data.get("annotations"), torch.Tensor):
            slab["annotations"] = resample_classes(data, matrix, self.roi_size, "annotations")
            slab.update({key: data[key] for key in ("annotated", "annotator_weight") if key in data})
        return slab

    def _matrix(self, data: Mapping[Hashable, Any]) -> NDArray[np.float64]:
        size, box = self.roi_size, data[RRRKeys.BRAIN].shape
        step = slab_step(data, self.spacing)
        base = centered_matrix(step, size, box)
        covered = step[2] * (size[2] - 1)
        if covered < box[2] - 1:
            start = self._height * box[2] - (covered + 1) / 2
            # Whole slices when the thickness is the same, each as likely as the others.
            base[2, 3] = np.clip(np.floor(start + 0.5) if step[2] == 1 else start, 0, box[2] - 1 - covered)
        # Rotate about the slab's own center, in mm.
        about = np.eye(4)
        spacing = np.asarray(self.spacing)
        about[:3, :3] = self._linear * spacing[None, :] / spacing[:, None]
        middle = (np.asarray(size) - 1) / 2
        about[:3, 3] = middle - about[:3, :3] @ middle + self._shift / spacing
        return base @ about


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    first, second = (a for a in range(3) if a != axis)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix
