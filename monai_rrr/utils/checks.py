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

"""Checks that several packages share, with one wording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monai_rrr.errors import InferenceError
from monai_rrr.utils.enums import MODALITIES, REGIONS

__all__ = ["check_heatmaps"]

_HINT = "no mask is made of it and nothing is written; look at the weights, the precision and the images of this case"


def check_heatmaps(
    heatmap: Any,
    *,
    case_id: str | None = None,
    modalities: Sequence[str] = MODALITIES,
    regions: Sequence[str] = REGIONS,
) -> None:
    """Refuse heatmaps of one case that are not finite: NaN is less than any threshold, so a mask would look plausible.

    Args:
        heatmap: tensor or array, ``KXYZ`` or ``(1+M)KXYZ`` with the fused map first.
        case_id: case to name.
        modalities: names of the M maps after the first, to name them.
        regions: names of the classes, to name them.

    Raises:
        InferenceError: ``heatmap-not-finite``, with modality and class of the first such map.

    Example:
        >>> try:
        ...     check_heatmaps(torch.tensor([0.0, torch.inf, 0.0]).view(3, 1, 1, 1), case_id="a")
        ... except InferenceError as error:
        ...     print(error.code, error.case_id, error.field, error.message, sep="; ")
        heatmap-not-finite; a; TC; expected finite values, got 0 NaN and 1 infinite of 1 voxels
    """
    values = torch.as_tensor(heatmap)
    if bool(torch.isfinite(values).all()):
        return
    maps = values.flatten(0, values.ndim - 4)
    first = int((~torch.isfinite(maps)).flatten(1).any(1).nonzero()[0])
    group, index = divmod(first, values.shape[-4])
    name = regions[index] if values.shape[-4] == len(regions) else f"class {index}"
    if group:
        known = values.shape[0] == 1 + len(modalities)
        name = f"{modalities[group - 1] if known else f'modality {group - 1}'}, {name}"
    nans, infinite = int(maps[first].isnan().sum()), int(maps[first].isinf().sum())
    message = f"expected finite values, got {nans} NaN and {infinite} infinite of {maps[first].numel()} voxels"
    raise InferenceError("heatmap-not-finite", message, case_id=case_id, field=name, hint=_HINT)
