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

from monai_rrr.engines import PrepareViews
from monai_rrr.transforms.warp import RandomWarp


def make_batch(count: int = 2):
    image = torch.rand(count, 4, 8, 8, 4)
    image[..., :2, :, :] = 0
    return {
        "image": image,
        "brain": (image != 0).any(1, keepdim=True),
        "present": torch.ones(count, 4, dtype=torch.bool),
        "class_label": torch.rand(count, 3).round(),
        "slice_label": torch.rand(count, 3, 4).round(),
        "case_id": ["a", "b"],
        "iteration": 3,
    }


def test_one_view_keeps_the_dictionary():
    batch = make_batch()
    prepared = PrepareViews()(batch, "cpu", False)
    assert prepared.keys() == batch.keys()
    assert all(prepared[key] is batch[key] or torch.equal(prepared[key], batch[key]) for key in batch)


def test_two_views_move_together():
    batch = make_batch()
    batch["label"] = (batch["image"][:, :3] > 0.5).to(torch.uint8)
    prepared = PrepareViews(RandomWarp(seed=1))(batch, torch.device("cpu"), True, dtype=None)
    warp = prepared["warp"]
    for key in ("image", "brain", "present", "class_label", "slice_label", "label"):
        assert len(prepared[key]) == 4, key
        assert torch.equal(prepared[key][:2].to(batch[key].dtype), batch[key]), key
    assert torch.equal(prepared["image"][2:], warp(batch["image"]))
    assert torch.equal(prepared["brain"][2:], warp(batch["brain"].float()) > 0.5)
    assert prepared["brain"].dtype == torch.bool
    assert torch.equal(prepared["slice_label"][2:], warp.slices(batch["slice_label"]))
    assert torch.equal(prepared["class_label"][2:], batch["class_label"])
    assert set(prepared["label"].unique().tolist()) <= {0.0, 1.0}
    assert prepared["case_id"] == ["a", "b"]
    assert "warp" not in batch
    assert len(batch["image"]) == 2, "the batch of the loader stays as it was"


def test_the_draw_follows_the_iteration():
    batch, prepare = make_batch(), PrepareViews(RandomWarp(seed=1))
    first, again, later = prepare(batch), prepare(batch), prepare({**batch, "iteration": 4})
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], later["image"])


def test_missing_keys_are_named():
    batch = make_batch()
    del batch["slice_label"], batch["present"]
    with pytest.raises(ValueError, match=r"two views need .*, got a batch without \['present', 'slice_label'\]"):
        PrepareViews(RandomWarp())(batch)


def test_evidence_masks_move_with_the_image():
    batch = make_batch()
    batch["evidence_mask"] = (batch["image"][:, :3] > 0.5).float()
    batch["has_mask"] = torch.tensor([True, False])
    prepared = PrepareViews(RandomWarp(seed=1))(batch, "cpu", False)
    assert prepared["has_mask"].tolist() == [True, False] * 2
    assert torch.equal(prepared["evidence_mask"][:2], batch["evidence_mask"])
    moved = prepared["warp"](batch["evidence_mask"], "nearest")
    assert torch.equal(prepared["evidence_mask"][2:], moved)


def test_what_annotators_drew_moves_with_the_image_and_is_unknown_outside():
    batch = make_batch()
    batch["annotations"] = torch.randint(0, 4, (2, 3, 8, 8, 4)).to(torch.int8)
    batch["annotated"] = torch.tensor([[True, False, True], [True, True, False]])
    batch["annotator_weight"] = torch.rand(2, 3)
    prepared = PrepareViews(RandomWarp(seed=1, exact=0.0, translation=0.3))(batch, "cpu", False)
    assert prepared["annotations"].dtype == torch.int8
    assert torch.equal(prepared["annotations"][:2], batch["annotations"])
    moved = prepared["warp"]((batch["annotations"] == 2).float(), "nearest") > 0.5
    assert torch.equal(prepared["annotations"][2:] == 2, moved)
    covered = prepared["warp"](torch.ones(2, 3, 8, 8, 4), "nearest") > 0.5
    assert not covered.all()
    assert torch.equal(prepared["annotations"][2:] >= 0, covered)
    for key in ("annotated", "annotator_weight"):
        assert torch.equal(prepared[key], torch.cat([batch[key]] * 2))
