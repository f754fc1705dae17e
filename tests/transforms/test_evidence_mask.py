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


from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor

from monai_rrr.transforms import EvidenceMaskd


def sample(name: str, labelled: bool = True) -> dict[str, object]:
    item: dict[str, object] = {"case_id": name, "image": torch.rand(4, 5, 4, 3)}
    return {**item, "label": MetaTensor((torch.rand(3, 5, 4, 3) > 0.5).float())} if labelled else item


def test_batches_mix_cases_with_and_without_a_mask() -> None:
    cases = [sample("a"), sample("b", labelled=False)]
    (batch,) = DataLoader(Dataset(cases, EvidenceMaskd(3)), batch_size=2)
    assert batch["has_mask"].tolist() == [True, False]
    assert torch.equal(batch["evidence_mask"][0], cases[0]["label"].as_tensor())
    assert batch["evidence_mask"][1].abs().max() == 0
    assert "label" not in batch


def test_share_belongs_to_the_case_not_to_its_place() -> None:
    cases = [sample(f"case_{index}") for index in range(200)]
    transform = EvidenceMaskd(3, share=0.3, seed=1)
    kept = {case["case_id"] for case in cases if transform(case)["has_mask"]}
    assert kept == {case["case_id"] for case in reversed(cases) if transform(case)["has_mask"]}
    assert 40 < len(kept) < 80
    more = {case["case_id"] for case in cases if EvidenceMaskd(3, share=0.6, seed=1)(case)["has_mask"]}
    assert kept < more
    assert kept != {case["case_id"] for case in cases if EvidenceMaskd(3, share=0.3)(case)["has_mask"]}
    assert not any(EvidenceMaskd(3, share=0.0)(case)["has_mask"] for case in cases)
    assert all(EvidenceMaskd(3)(case)["has_mask"] for case in cases)


def test_exception() -> None:
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 1\.5"):
        EvidenceMaskd(3, share=1.5)
    with pytest.raises(ValueError, match=r"expected a label of shape \(1, 5, 4, 3\), got \(3, 5, 4, 3\)"):
        EvidenceMaskd(1)(sample("a"))
