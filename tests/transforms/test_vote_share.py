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

"""Votes against a count, voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_rrr.transforms import vote_share


def test_equals_a_count_voxel_by_voxel() -> None:
    torch.manual_seed(0)
    annotations = torch.randint(-1, 4, (2, 5, 4, 4, 4), dtype=torch.int8)
    annotated = torch.tensor([[True, True, False, True, True], [False, False, True, True, True]])
    share = vote_share(annotations, annotated)
    for batch, *place in np.ndindex(2, 4, 4, 4):
        said = [int(annotations[(batch, r, *place)]) for r in range(5) if annotated[batch, r]]
        counts = np.array([sum(one == c for one in said) for c in range(4)])
        np.testing.assert_allclose(share[(batch, slice(None), *place)], counts / max(counts.sum(), 1), rtol=1e-6)
        assert int(share.argmax(1)[(batch, *place)]) == int(counts.argmax()), "of equal ones the lowest"
    assert torch.equal(vote_share(annotations), vote_share(annotations, torch.ones(2, 5, dtype=torch.bool)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected annotated B R .* got \(1, 3\) and \(1, 2, 3\)"):
        vote_share(torch.zeros(1, 2, 3), torch.ones(1, 3, dtype=torch.bool))
