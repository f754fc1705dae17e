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

"""Slices tagged to hold none of a region: background, whoever drew it or did not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monai_rrr.attribution import Trace
from monai_rrr.objectives import TaggedAbsence

REGIONS = ((1, 2, 3), (1, 3), (3,))


def trace(logits: Tensor) -> Trace:
    return Trace(nn.Identity(), (), torch.zeros(len(logits), 1, *logits.shape[2:]), logits, {})


def logits() -> Tensor:
    return torch.randn(2, 4, 3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tags() -> Tensor:
    """The first sample has WT on two slices and no ET; of the second nothing is known but one slice."""
    found = torch.full((2, 3, 4), torch.nan, dtype=torch.float64)
    found[0] = torch.tensor([[0, 1, 1, 0], [0, 1, torch.nan, 0], [0, 0, 0, 0]])
    found[1, 0, 2] = 0
    return found


def test_value_voxel_by_voxel() -> None:
    z, labels = logits(), tags()
    brain = torch.ones(2, 1, 3, 2, 4, dtype=torch.bool)
    brain[0, :, 0] = False
    p = z.softmax(1)
    means = []
    for b in range(2):
        for k, classes in enumerate(REGIONS):
            parts = [
                -torch.log(1 - sum(p[b, c, x, y, d] for c in classes))
                for x in range(3)
                for y in range(2)
                for d in range(4)
                if labels[b, k, d] == 0 and brain[b, 0, x, y, d]
            ]
            means += [torch.stack(parts).mean()] if parts else []
    value = TaggedAbsence()(trace(z), {"slice_label": labels, "brain": brain})
    assert len(means) == 4
    assert float(value) == pytest.approx(float(torch.stack(means).mean()), abs=1e-9)


def test_only_the_slices_without_the_region_get_a_gradient() -> None:
    z = logits().requires_grad_()
    batch = {"slice_label": tags(), "brain": torch.ones(2, 1, 3, 2, 4, dtype=torch.bool)}
    TaggedAbsence()(trace(z), batch).backward()
    moved = z.grad.abs().amax((1, 2, 3)) > 0
    assert moved.tolist() == [[True, True, True, True], [False, False, True, False]]
    assert bool((z.grad[0, 3] > 0).all()), "there is no ET in any slice"
    assert bool((z.grad[0, 0] < 0).all()), "background gains wherever anything is absent"


def test_nothing_known_is_zero_with_zero_gradient() -> None:
    z = logits().requires_grad_()
    batch = {"slice_label": torch.full((2, 3, 4), torch.nan), "brain": torch.ones(2, 1, 3, 2, 4)}
    value = TaggedAbsence()(trace(z), batch)
    value.backward()
    assert float(value.detach()) == 0
    assert not z.grad.any()


def test_sure_logits_stay_finite_and_a_layer_may_be_named() -> None:
    z = (1e4 * logits()).requires_grad_()
    found = Trace(nn.Identity(), ("consensus",), torch.zeros(2, 1, 3, 2, 4), torch.zeros(2, 3), {"consensus": z})
    term = TaggedAbsence(layer="consensus")
    assert term.layers == ("consensus",)
    value = term(found, {"slice_label": torch.zeros(2, 3, 4), "brain": torch.ones(2, 1, 3, 2, 4)})
    value.backward()
    assert bool(value.isfinite() & z.grad.isfinite().all())


def test_exception() -> None:
    with pytest.raises(ValueError, match=r"slice_label must be \(2, 3, 4\), got \(2, 3, 5\)"):
        TaggedAbsence()(trace(logits()), {"slice_label": torch.zeros(2, 3, 5), "brain": torch.ones(2, 1, 3, 2, 4)})
