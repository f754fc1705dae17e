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


"""Modalities that are left out at random."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monai_rrr.transforms import RandModalityDropoutd


def sample(*absent: int) -> dict[str, Any]:
    present = torch.tensor([m not in absent for m in range(4)])
    return {"image": torch.ones(4, 2, 2, 2) * present[:, None, None, None], "present": present, "case_id": "x"}


def test_every_subset_but_none_is_as_likely() -> None:
    dropout = RandModalityDropoutd(1.0).set_random_state(0)
    found: dict[tuple[bool, ...], int] = {}
    for _ in range(1500):
        out = dropout(sample())
        assert torch.equal(out["image"].flatten(1).any(1), out["present"])
        key = tuple(out["present"].tolist())
        found[key] = found.get(key, 0) + 1
    assert len(found) == 15
    assert (False,) * 4 not in found
    assert 60 < min(found.values()) <= max(found.values()) < 140


def test_absent_modalities_stay_absent_and_the_last_one_stays() -> None:
    dropout = RandModalityDropoutd(1.0).set_random_state(0)
    for _ in range(20):
        out = dropout(sample(0, 3))
        assert not out["present"][[0, 3]].any()
        assert out["present"].any()
    assert dropout(sample(0, 1, 3))["present"].tolist() == [False, False, True, False]


def test_probability() -> None:
    dropout = RandModalityDropoutd(0.3).set_random_state(0)
    whole = sum(bool(dropout(sample())["present"].all()) for _ in range(1000))
    assert abs(whole / 1000 - (0.7 + 0.3 / 15)) < 0.05
    data = sample()
    assert RandModalityDropoutd(0.0)(data)["image"] is data["image"]


def test_exception() -> None:
    with pytest.raises(ValueError, match=r"prob must be in \[0, 1\], got 2"):
        RandModalityDropoutd(2)
