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

"""Tests of what the terms share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.trace import Trace
from monai_rrr.engines import PrepareViews
from monai_rrr.objectives.views import brain_at, evidence_views, pair_views
from monai_rrr.transforms import RandomWarp


def make_batch():
    torch.manual_seed(0)
    batch = {
        "image": torch.rand(2, 4, 8, 8, 6),
        "brain": torch.rand(2, 1, 8, 8, 6) > 0.4,
        "present": torch.ones(2, 4, dtype=torch.bool),
        "class_label": torch.ones(2, 3),
        "slice_label": torch.ones(2, 3, 6),
        "iteration": 3,
    }
    return PrepareViews(RandomWarp(seed=1))(batch, "cpu")


def make_trace(maps):
    return Trace(nn.Identity(), ("class_maps",), torch.zeros(4, 1), maps.mean((3, 4, 5)), {"class_maps": maps})


@pytest.mark.parametrize("shape", [(4, 4, 6), (8, 8, 6), (3, 5, 6)])
def test_brain_equals_adaptive_pooling(shape):
    batch = make_batch()
    torch.testing.assert_close(brain_at(batch, shape), F.adaptive_avg_pool3d(batch["brain"].float(), shape) > 0.5)


def test_views_are_made_once_per_trace():
    batch, attribute = make_batch(), ClassMap()
    maps = torch.randn(4, 4, 3, 4, 4, 6)
    trace = make_trace(maps)
    views = evidence_views(attribute, trace, batch)
    assert evidence_views(attribute, trace, batch) is views
    assert evidence_views(attribute, make_trace(maps), batch) is not views, "another trace, other views"
    fresh = pair_views(torch.sigmoid(maps), batch)
    torch.testing.assert_close(views.moved, fresh.moved)
    torch.testing.assert_close(views.second, fresh.second)
    assert torch.equal(views.mask, fresh.mask)


def test_nothing_is_kept_without_a_place():
    batch = make_batch()
    del batch["shared"]
    trace = make_trace(torch.randn(4, 4, 3, 4, 4, 6))
    first = evidence_views(ClassMap(), trace, batch)
    assert evidence_views(ClassMap(), trace, batch) is not first
    assert "shared" not in batch
