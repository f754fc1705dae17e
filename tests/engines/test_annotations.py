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

"""Batches for terms on annotators."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monai_rrr.engines import PrepareAnnotations, PrepareViews
from monai_rrr.transforms import RandomWarp
from monai_rrr.transforms.truncated_distance import truncated_distance
from monai_rrr.transforms.vote_share import vote_share

C, SIZE = 4, (12, 10, 8)


def make_batch() -> dict[str, Any]:
    drawn = torch.zeros(2, 3, *SIZE, dtype=torch.int16)
    drawn[:, :, 3:9, 3:8, 2:6] = 2
    drawn[:, :, 4:7, 4:6, 3:5] = 3
    drawn[0, 0, 2:10, 2:9, 2:6] = 2  # draws more
    drawn[1, 1] = -1
    drawn[0, :, 0] = -1
    return {"image": torch.randn(2, 4, *SIZE), "annotations": drawn, "iteration": 5, "case_id": ["a", "b"]}


def prepared(**options: Any) -> dict[str, Any]:
    return PrepareAnnotations(**{"voxels": 64, "spacing": (1.0, 1.0, 2.0), **options})(make_batch(), "cpu", False)


def test_votes_and_distances() -> None:
    batch = prepared()
    assert batch["annotated"].tolist() == [[True] * 3, [True, False, True]]
    assert torch.equal(batch["consensus"], vote_share(make_batch()["annotations"], batch["annotated"], C))
    assert batch["consensus"][0, 2, 2, 3, 3].item() == pytest.approx(1 / 3)
    assert batch["consensus"][1, 2, 8, 4, 3].item() == 1
    assert float(batch["consensus"][0, :, 0].abs().sum()) == 0
    label = batch["consensus_label"]
    assert torch.equal(label, batch["consensus"].argmax(1))
    expected = truncated_distance(torch.stack([label > 0, (label == 1) | (label == 3), label == 3], 1), (1.0, 1.0, 2.0))
    assert torch.equal(batch["signed_distance"], expected)


def test_a_consensus_that_is_there_is_kept() -> None:
    given = torch.randn(2, C, *SIZE).softmax(1)
    batch = PrepareAnnotations(voxels=8)({**make_batch(), "consensus": given}, "cpu")
    assert torch.equal(batch["consensus"], given)
    assert torch.equal(batch["consensus_label"], given.argmax(1))


def test_strata() -> None:
    batch = prepared(voxels=400)
    voxel, stratum = batch["voxel"], batch["voxel_stratum"]
    assert len(voxel) == len(stratum) == 400
    b, d, h, w = voxel.unbind(1)
    drawn, label = batch["annotations"][b, :, d, h, w], batch["consensus_label"][b, d, h, w]
    deviates = ((drawn >= 0) & (drawn != label[:, None])).any(1)
    near = (batch["signed_distance"][b, :, d, h, w].abs() <= 4).any(1)
    assert bool(deviates[stratum == 0].all())
    assert not bool(deviates[stratum > 0].any())
    assert bool(near[stratum == 1].all())
    assert not bool(near[stratum == 2].any())
    total = int(
        ((batch["annotations"] >= 0) & (batch["annotations"] != batch["consensus_label"][:, None])).any(1).sum()
    )
    assert int((stratum == 0).sum()) == min(200, total)
    assert int((stratum == 1).sum()) == 100
    kept = voxel[stratum >= 0]
    assert len(kept.unique(dim=0)) == len(kept), "no voxel twice"
    assert bool((drawn[stratum >= 0] >= 0).any(1).all()), "nothing is drawn where nobody drew"


def test_draw_is_a_function_of_seed_and_iteration() -> None:
    first, again, other = prepared(), prepared(), prepared(seed=1)
    assert torch.equal(first["voxel"], again["voxel"])
    assert not torch.equal(first["voxel"], other["voxel"])
    batch, state = make_batch(), torch.get_rng_state()
    PrepareAnnotations(voxels=64)(batch, "cpu")
    assert torch.equal(torch.get_rng_state(), state)


def test_masks_of_those_who_did_not_draw_are_never_looked_at() -> None:
    batch = make_batch()
    batch["annotated"] = torch.tensor([[True, True, False], [True, False, True]])
    found = PrepareAnnotations(voxels=8)(batch, "cpu")
    assert bool((found["annotations"][0, 2] == -1).all())
    unsigned = {**batch, "annotations": batch["annotations"].clamp(min=0).to(torch.uint8)}
    assert int(PrepareAnnotations(voxels=8)(unsigned, "cpu")["annotations"].min()) == -1


def test_exception() -> None:
    with pytest.raises(ValueError, match="expected 'annotations', got a batch with"):
        PrepareAnnotations()({"image": torch.zeros(1, 1, 2, 2, 2)}, "cpu")
    with pytest.raises(ValueError, match=r"annotations .* do not match image"):
        PrepareAnnotations()({**make_batch(), "image": torch.zeros(2, 4, 3, 3, 3)}, "cpu")
    with pytest.raises(ValueError, match="at least 4 voxels and boundary <= limit"):
        PrepareAnnotations(voxels=2)


def test_two_views_are_made_before_the_consensus() -> None:
    """What follows from the masks is computed for both views, of the masks that were moved."""
    image = torch.rand(1, 4, 8, 8, 4) + 0.1
    drawn = torch.zeros(1, 2, 8, 8, 4, dtype=torch.int8)
    drawn[:, 0, 2:6, 2:6, 1:3] = 3
    drawn[:, 1, 2:5, 2:6, 1:3] = 3
    batch = {
        **{"image": image, "brain": torch.ones(1, 1, 8, 8, 4, dtype=torch.bool), "present": torch.ones(1, 4)},
        **{"class_label": torch.ones(1, 3), "slice_label": torch.ones(1, 3, 4), "iteration": 5},
        **{"annotations": drawn, "annotated": torch.ones(1, 2, dtype=torch.bool)},
    }
    prepared = PrepareAnnotations(voxels=16, prepare=PrepareViews(RandomWarp(seed=2)))(batch, "cpu", False)
    assert prepared["image"].shape == (2, 4, 8, 8, 4)
    assert prepared["consensus"].shape == (2, 4, 8, 8, 4)
    assert prepared["signed_distance"].shape == (2, 3, 8, 8, 4)
    assert prepared["annotated"].shape == (2, 2)
    second = PrepareAnnotations(voxels=16)({"image": image, "annotations": prepared["annotations"][1:]}, "cpu", False)
    torch.testing.assert_close(prepared["consensus"][1:], second["consensus"])
    assert set(prepared["voxel"][:, 0].tolist()) == {0, 1}
