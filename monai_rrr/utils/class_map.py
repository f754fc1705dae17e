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

"""Exclusive tissue classes of a label file, and what is known of them when an annotator left regions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_rrr.utils.conventions import LabelConvention
from monai_rrr.utils.enums import REGIONS

__all__ = ["CLASSES", "UNKNOWN", "from_classes", "to_classes"]

CLASSES: tuple[str, ...] = ("background", "NCR", "ED", "ET")
UNKNOWN = -1
_MEMBERS = {"WT": (0, 1, 1, 1), "TC": (0, 1, 0, 1), "ET": (0, 0, 0, 1)}


def to_classes(label: NDArray[Any], convention: LabelConvention, regions: Sequence[str] = REGIONS) -> NDArray[np.int8]:
    """Turn label values into classes: 0 background, 1 NCR (TC minus ET), 2 ED (WT minus TC), 3 ET.

    Where the regions that were drawn leave more than one class possible, the class is -1: whoever drew WT alone says
    background outside of it, and nothing about what it is made of.

    Args:
        label: values of the convention.
        convention: what the values mean.
        regions: regions that the annotator draws.

    Raises:
        DataError: ``label-values``, when a value is not of the convention.
        ValueError: When a region is unknown, or none is given.

    Example:
        >>> from monai_rrr.utils.conventions import get_convention
        >>> to_classes(np.array([0, 1, 2, 4]), get_convention("brats2018"), ["WT"]).tolist()
        [0, -1, -1, -1]
        >>> to_classes(np.array([0, 1, 2, 4]), get_convention("brats2018"), ["WT", "TC"]).tolist()
        [0, -1, 2, -1]
    """
    if not regions or not set(regions) <= set(REGIONS):
        raise ValueError(f"expected regions out of {REGIONS}, got {tuple(regions)}")
    convention.check_values([int(value) for value in np.unique(label)])
    signs = list(zip(*(_MEMBERS[region] for region in regions), strict=True))
    known = [index if signs.count(sign) == 1 else UNKNOWN for index, sign in enumerate(signs)]
    out = np.full(label.shape, known[0], np.int8)
    for value, index in ((convention.ncr, 1), (convention.ed, 2), (convention.et, 3)):
        out[label == value] = known[index]
    return out


def from_classes(classes: NDArray[Any], convention: LabelConvention) -> NDArray[np.uint8]:
    """Turn classes 0 to 3 into the label values of a convention.

    Example:
        >>> from monai_rrr.utils.conventions import get_convention
        >>> from_classes(np.array([0, 1, 2, 3]), get_convention("msd")).tolist()
        [0, 2, 1, 3]
    """
    values = np.array([0, convention.ncr, convention.ed, convention.et], np.uint8)
    return np.asarray(values[np.asarray(classes, dtype=np.intp)])
