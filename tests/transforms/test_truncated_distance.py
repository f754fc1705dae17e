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

"""Signed distances, against all pairs of voxels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_rrr.transforms.truncated_distance import truncated_distance


def reference(mask: Tensor, spacing: tuple[float, ...], limit: float) -> Tensor:
    places = torch.cartesian_prod(*(torch.arange(n) for n in mask.shape)).double() * torch.tensor(spacing).double()
    flat = mask.flatten()
    apart = torch.cdist(places, places)
    result = torch.empty(len(flat), dtype=torch.float64)
    for index, inside in enumerate(flat.tolist()):
        other = apart[index][flat != inside]
        distance = float(other.min()) - min(spacing) / 2 if len(other) else limit
        result[index] = distance if inside else -distance
    return result.reshape(mask.shape).clamp(-limit, limit)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.5, 3.0)])
@pytest.mark.parametrize("limit", [2.0, 8.0])
def test_value(spacing: tuple[float, ...], limit: float) -> None:
    mask = torch.rand(2, 2, 6, 5, 7) > 0.9
    mask[1, 1] = False
    mask[1, 0] = True
    found = truncated_distance(mask, spacing, limit)
    for b in range(2):
        for c in range(2):
            assert torch.allclose(found[b, c].double(), reference(mask[b, c], spacing, limit), atol=1e-5)


def test_two_dimensions() -> None:
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    mask[..., 2, 2] = True
    assert truncated_distance(mask, [2.0, 2.0])[0, 0, 2].tolist() == [-3.0, -1.0, 1.0, -1.0, -3.0]


@pytest.mark.parametrize(
    ("spacing", "limit", "message"),
    [
        ((1.0, 1.0), 8.0, "spacing must have 3 values"),
        ((1.0, 0.0, 1.0), 8.0, "positive"),
        ((1.0,) * 3, 0.0, "positive"),
    ],
)
def test_exception(spacing: tuple[float, ...], limit: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        truncated_distance(torch.ones(1, 1, 2, 2, 2), spacing, limit)
