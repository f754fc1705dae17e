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

"""Signed distances on a device, against those of SciPy, which are tested against a search over all voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_rrr.transforms.truncated_distance import truncated_distance
from monai_rrr.utils.distance import signed_distance


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.5, 1.5), (0.7, 1.6, 2.9)])
@pytest.mark.parametrize("limit", [2.0, 8.0])
def test_equals_signed_distance_up_to_the_limit(spacing: tuple[float, ...], limit: float) -> None:
    mask = torch.rand(2, 2, 6, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.9
    mask[1, 1] = False
    mask[1, 0] = True
    found = truncated_distance(mask, spacing, limit)
    for b, c in np.ndindex(2, 2):
        expected = signed_distance(mask[b, c].numpy(), spacing).clip(-limit, limit)
        np.testing.assert_allclose(found[b, c], expected, atol=1e-5)
    assert len(found[0].unique()) >= 5


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
