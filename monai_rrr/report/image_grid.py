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

"""Bring what a network gave on its own grid back to the grid of the image."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from monai.transforms.utils import convert_applied_interp_mode
from numpy.typing import NDArray
from torch import Tensor

from monai_rrr.transforms.source_grid import to_source_grid

__all__ = ["ImageGrid", "SourceGrid", "VolumeGrid"]


class SourceGrid(Protocol):
    """What a network saw of a case, and the way back to the voxels of the case's files."""

    @property
    def seen(self) -> MetaTensor:
        """Image ``Mhwd`` on the grid of the network."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """4x4, voxel of the files to mm in RAS."""

    def back(self, values: Tensor, nearest: bool = False) -> NDArray[Any]:
        """Return values ``Khwd`` on the grid of the files, ``KHWD`` float32; 0 outside of what the network saw."""


@dataclass(frozen=True)
class VolumeGrid:
    """An image of our :class:`~monai_rrr.transforms.WholeVolumed`, which a bundle gave to its network.

    Args:
        seen: ``Mhwd``.
        geometry: of the sample.
    """

    seen: MetaTensor
    geometry: Mapping[str, Any]

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> VolumeGrid:
        """Read the image of a sample and where it lies."""
        affine = torch.as_tensor(np.asarray(sample["geometry"]["affine"], dtype=np.float64))
        return cls(MetaTensor(torch.as_tensor(sample["image"]), affine=affine), sample["geometry"])

    @property
    def affine(self) -> NDArray[np.float64]:
        """Of the files."""
        return np.asarray(self.geometry["source_affine"], dtype=np.float64)

    def back(self, values: Tensor, nearest: bool = False) -> NDArray[Any]:
        """Return values on the grid of the files, see :class:`SourceGrid`."""
        found = to_source_grid(values.detach().float(), self.geometry, mode="nearest" if nearest else "bilinear")
        return found.astype(np.float32, copy=False)


@dataclass(frozen=True)
class ImageGrid:
    """An image, and how it was prepared for a network.

    Args:
        image: ``MHWD`` with an affine.
        prepare: array transforms; spatial ones must be invertible.
        seen: what they made of the image.
    """

    image: MetaTensor
    prepare: Compose
    seen: MetaTensor

    @classmethod
    def of(cls, image: MetaTensor, prepare: Compose) -> ImageGrid:
        """Prepare a copy of an image: transforms such as ``NormalizeIntensity`` may write into what they are given."""
        source = MetaTensor(image.as_tensor().clone(), affine=image.affine.clone())
        return cls(image, prepare, prepare(source))

    @property
    def affine(self) -> NDArray[np.float64]:
        """Of the image."""
        return np.asarray(self.image.affine, dtype=np.float64)

    def back(self, values: Tensor, nearest: bool = False) -> NDArray[Any]:
        """Return values on the grid of the image, 0 outside of what the network saw.

        Args:
            values: ``Khwd``, on the grid that the network saw.
            nearest: take the nearest voxel instead of interpolating linearly.

        Returns:
            ``KHWD``, float32.

        Raises:
            ValueError: When the preparation can't be undone.
        """
        applied = copy.deepcopy(self.seen.applied_operations)
        if nearest:
            applied = convert_applied_interp_mode(applied, "nearest")
        there = MetaTensor(values.detach().float().cpu(), affine=self.seen.affine, applied_operations=applied)
        found = self.prepare.inverse(there)
        shape, affine = tuple(self.image.shape[1:]), self.image.affine.double()
        if found.shape[1:] != shape or not torch.allclose(found.affine.double(), affine, atol=1e-3):
            raise ValueError(f"the preprocessing can't be undone: expected shape {shape}, got {tuple(found.shape[1:])}")
        return np.asarray(found.as_tensor().numpy(), dtype=np.float32)
