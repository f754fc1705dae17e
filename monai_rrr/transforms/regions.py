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

"""Voxel labels to nested regions and back, for a named label convention."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from monai_rrr.errors import DataError
from monai_rrr.utils.conventions import INTEGER_TOLERANCE, LabelConvention, get_convention

__all__ = ["LabelToRegionsd", "to_labels", "to_regions"]

Array = TypeVar("Array", np.ndarray[Any, Any], Tensor)


def to_regions(label: Array, convention: str | LabelConvention) -> Array:
    """Turn voxel labels into the nested regions WT, TC, ET.

    Args:
        label: voxel values of ``convention``; values within 1e-3 of an integer are rounded.
        convention: name of the label convention, or the convention.

    Shape:
        - label: ``HW[D]``, without a channel.
        - output: ``3HW[D]`` uint8 in the order WT, TC, ET; ET is inside TC, TC inside WT.

    Raises:
        DataError: ``label-fractional`` or ``label-values``, when the values are not those of the convention.

    Example:
        >>> to_regions(torch.tensor([0, 1, 2, 4]), "brats2018").tolist()
        [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    """
    convention = get_convention(convention)
    tensor = torch.as_tensor(label)
    if tensor.is_floating_point():
        rounded = tensor.round()
        fractional = ~((tensor - rounded).abs() <= INTEGER_TOLERANCE)
        if fractional.any():
            raise DataError(
                "label-fractional",
                f"expected integer label values, got {int(fractional.sum())} fractional or non-finite voxels, "
                f"the first {float(tensor[fractional][0])}",
                field="label",
                hint="resample labels by nearest neighbor",
            )
        tensor = rounded
    tensor = tensor.to(torch.int64)
    convention.check_values({int(value) for value in torch.unique(tensor)})
    regions = torch.stack([_isin(tensor, values) for values in convention.regions.values()]).to(torch.uint8)
    return regions if isinstance(label, Tensor) else regions.numpy()


def _isin(tensor: Tensor, values: tuple[int, ...]) -> Tensor:
    mask = tensor == values[0]
    for value in values[1:]:
        mask = mask | (tensor == value)
    return mask


def to_labels(regions: Array, convention: str | LabelConvention) -> Array:
    """Turn regions into voxel labels: the inverse of :func:`to_regions`.

    Regions that are not nested, such as a prediction may give, are made so from the inside: a voxel of ET is
    enhancing tumor whatever WT and TC say, one of TC without ET is core, one of WT alone is edema.

    Args:
        regions: nonzero where the region is, in the order WT, TC, ET.
        convention: name of the label convention, or the convention.

    Shape:
        - regions: ``3HW[D]``.
        - output: ``HW[D]`` uint8.

    Raises:
        ValueError: When the first dimension is not 3.

    Example:
        >>> to_labels(to_regions(torch.tensor([0, 1, 2, 4]), "brats2018"), "msd").tolist()
        [0, 2, 1, 3]
    """
    convention = get_convention(convention)
    tensor = torch.as_tensor(regions)
    if tensor.ndim < 1 or tensor.shape[0] != 3:
        raise ValueError(f"expected regions 3HW[D] (WT, TC, ET), got shape {tuple(tensor.shape)}")
    whole, core, enhancing = (tensor != 0).unbind(0)
    label = torch.zeros(tensor.shape[1:], dtype=torch.uint8, device=tensor.device)
    label = label.masked_fill(whole, convention.ed).masked_fill(core, convention.ncr)
    label = label.masked_fill(enhancing, convention.et)
    return label if isinstance(regions, Tensor) else label.numpy()


class LabelToRegionsd(MapTransform):
    """Dictionary transform of :func:`to_regions`: label ``1HW[D]`` (or ``HW[D]``) to regions ``3HW[D]``.

    Args:
        keys: keys of the labels.
        convention: name of the label convention; there is no default.
        allow_missing_keys: do nothing for a key that the data does not have.

    Shape:
        - label: ``1HWD``, or ``HWD``; 2D labels need their channel.
        - output: ``3HWD`` uint8 in the order WT, TC, ET.
    """

    def __init__(
        self, keys: KeysCollection, convention: str | LabelConvention, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.convention = get_convention(convention)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the label of each key by its regions."""
        out = dict(data)
        for key in self.key_iterator(out):
            label = out[key]
            out[key] = to_regions(label[0] if label.shape[0] == 1 else label, self.convention)
        return out
