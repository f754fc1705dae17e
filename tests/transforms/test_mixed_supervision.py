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


"""What the terms on heatmaps read, from whatever a sample has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import list_data_collate

from monai_rrr.transforms import MixedSupervisiond

SHAPE = (4, 4, 3)


def sample(drawn: int = 2, **more: Any) -> dict[str, Any]:
    annotated = torch.arange(2) < drawn
    annotations = torch.where(annotated[:, None, None, None], 0, -1).expand(2, *SHAPE).to(torch.int8).clone()
    return {
        **{"case_id": "x", "image": torch.zeros(4, *SHAPE), "brain": torch.ones(1, *SHAPE).bool()},
        **{"annotations": annotations, "annotated": annotated},
        **{"class_label": torch.full((3,), torch.nan), "slice_label": torch.full((3, SHAPE[2]), torch.nan), **more},
    }


def test_masks_allow_evidence_where_anyone_drew() -> None:
    data = sample()
    data["annotations"][0, 0, 0, 0] = 2  # ED: WT alone
    data["annotations"][1, 1, 1, 1] = 1  # NCR: WT and TC
    out = MixedSupervisiond()(data)
    assert bool(out["has_mask"])
    assert out["evidence_mask"].nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]


def test_what_is_left_open_is_allowed_inside_the_brain() -> None:
    data = sample(drawn=1)
    data["brain"][:, 3] = False
    data["annotations"][0, 2:] = -1
    out = MixedSupervisiond()(data)
    for mask in out["evidence_mask"]:
        assert mask.nonzero()[:, 0].unique().tolist() == [2]
    assert out["slice_label"].isnan().all(), "a region may be there"


def test_marks_and_masks_both_hold() -> None:
    data = sample(evidence=torch.zeros(1, *SHAPE))
    data["evidence"][:, :2] = 1.0
    data["annotations"][:, 1:3, 0, 0] = 3
    out = MixedSupervisiond()(data)
    assert out["evidence_mask"].nonzero().tolist() == [[k, 1, 0, 0] for k in range(3)]
    assert "evidence" not in out
    marks = MixedSupervisiond(from_masks=False)(data)
    assert torch.equal(marks["evidence_mask"], data["evidence"].expand(3, -1, -1, -1))


@pytest.mark.parametrize("from_masks", [True, False])
def test_without_either_there_is_no_mask(from_masks: bool) -> None:
    out = MixedSupervisiond(from_masks=from_masks)(sample(drawn=0))
    assert not out["has_mask"]
    assert not out["evidence_mask"].any()
    assert out["class_label"].isnan().all()
    assert not MixedSupervisiond(from_masks=False)(sample())["has_mask"]


def test_unknown_tags_are_read_off_the_masks_and_known_ones_stay() -> None:
    data = sample()
    data["annotations"][:, 0, 0, 0] = 3  # both: every region in slice 0
    data["annotations"][0, 0, 0, 2] = 2  # one of two: WT in slice 2 is open
    data["slice_label"][0, 1] = 1.0
    data["class_label"][2] = 0.0
    out = MixedSupervisiond()(data)
    expected = torch.tensor([[1.0, 1.0, torch.nan], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(out["slice_label"], expected, equal_nan=True)
    assert out["class_label"].tolist() == [1.0, 1.0, 0.0]
    assert data["slice_label"][0].isnan().sum() == 2, "the sample is not changed in place"


def test_mixed_samples_collate() -> None:
    load = MixedSupervisiond()
    batch = list_data_collate(
        [load(sample()), load(sample(drawn=0)), load(sample(drawn=0, evidence=torch.ones(1, *SHAPE)))]
    )
    assert batch["has_mask"].tolist() == [True, False, True]
    assert batch["evidence_mask"].shape == (3, 3, *SHAPE)
