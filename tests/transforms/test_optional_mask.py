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

"""Masks that only some samples have."""

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset

from monai_rrr.transforms import OptionalMaskd


def test_mixed_samples_make_a_batch() -> None:
    mask = torch.ones(2, 4, 4, 4, dtype=torch.uint8)
    items = [{"image": torch.rand(3, 4, 4, 4), **({"label": mask} if i == 1 else {})} for i in range(3)]
    batch = next(iter(DataLoader(Dataset(items, OptionalMaskd(2)), batch_size=3, num_workers=0)))
    assert batch["has_mask"].tolist() == [False, True, False]
    assert batch["label"].dtype == torch.float32
    assert batch["label"].flatten(1).amax(1).tolist() == [0.0, 1.0, 0.0]
    assert "label" not in items[0]


def test_wrong_mask() -> None:
    sample = {"image": torch.rand(3, 4, 4, 4), "label": torch.zeros(1, 4, 4, 4)}
    with pytest.raises(ValueError, match=r"expected a mask of shape \(2, 4, 4, 4\), got \(1, 4, 4, 4\)"):
        OptionalMaskd(2)(sample)
