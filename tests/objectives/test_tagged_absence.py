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

"""Slices tagged to hold none of a region, against a reference of loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_rrr.attribution import Trace
from monai_rrr.objectives import TaggedAbsence

REGIONS = ((1, 2, 3), (1, 3), (3,))
UNKNOWN = torch.nan


def trace(logits: Tensor) -> Trace:
    return Trace(nn.Identity(), (), torch.zeros(len(logits), 1, *logits.shape[2:]), logits, {})


def logits() -> Tensor:
    return torch.randn(2, 4, 3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tags() -> Tensor:
    """The first sample has WT on two slices and no ET; of the second nothing is known but one slice."""
    found = torch.full((2, 3, 4), UNKNOWN, dtype=torch.float64)
    found[0] = torch.tensor([[0, 1, 1, 0], [0, 1, UNKNOWN, 0], [0, 0, 0, 0]])
    found[1, 0, 2] = 0
    return found


def brain() -> Tensor:
    """Half of the voxels, and none in the last slice of the first sample."""
    found = torch.ones(2, 1, 3, 2, 4, dtype=torch.bool)
    found[:, :, 0] = False
    found[0, :, :, :, 3] = False
    return found


def reference(z: Tensor, labels: Tensor, inside: Tensor, sharpness: float) -> float:
    values = []
    for b in range(2):
        for k, classes in enumerate(REGIONS):
            for d in range(4):
                voxels = inside[b, 0, :, :, d].nonzero().tolist()
                if labels[b, k, d] != 0 or not voxels:
                    continue
                powers = []
                for x, y in voxels:
                    p = z[b, :, x, y, d].softmax(0)
                    own = sum(float(p[c]) for c in classes)
                    powers.append(math.exp(sharpness * math.log(own / (1 - own))))
                score = math.log(sum(powers) / len(powers)) / sharpness
                values.append(math.log(1 + math.exp(score)))
    return sum(values) / len(values)


@pytest.mark.parametrize("sharpness", [1.0, 5.0])
def test_value_slice_by_slice(sharpness: float) -> None:
    batch = {"slice_label": tags(), "brain": brain()}
    value = TaggedAbsence(sharpness=sharpness)(trace(logits()), batch)
    assert float(value) == pytest.approx(reference(logits(), tags(), brain(), sharpness), abs=1e-9)


def test_only_the_slices_without_the_region_get_a_gradient() -> None:
    z = logits().requires_grad_()
    TaggedAbsence()(trace(z), {"slice_label": tags(), "brain": torch.ones_like(brain())}).backward()
    moved = z.grad.abs().amax((1, 2, 3)) > 0
    assert moved.tolist() == [[True, True, True, True], [False, False, True, False]]
    assert bool((z.grad[0, 3] > 0).all()), "there is no ET in any slice"
    assert bool((z.grad[0, 0] < 0).all()), "background gains wherever anything is absent"


def test_cases_that_somebody_drew_do_not_count() -> None:
    z = logits().requires_grad_()
    batch = {"slice_label": tags(), "brain": brain(), "annotated": torch.tensor([[False, True], [False, False]])}
    value = TaggedAbsence()(trace(z), batch)
    value.backward()
    unknown = tags()
    unknown[0] = UNKNOWN
    assert float(value.detach()) == pytest.approx(reference(logits(), unknown, brain(), 5.0), abs=1e-9)
    assert not z.grad[0].any()


def test_gradients_are_those_of_finite_differences() -> None:
    z = logits().requires_grad_()
    batch = {"slice_label": tags(), "brain": brain()}
    assert torch.autograd.gradcheck(lambda x: TaggedAbsence()(trace(x), batch), z)


def test_a_small_false_lesion_counts_as_much_as_a_large_one() -> None:
    """What a mean over the background lacks: the loss of one voxel is that of all of them, but for a logarithm."""
    term, losses, means = TaggedAbsence(regions=((1, 2, 3),)), [], []
    batch = {"slice_label": torch.zeros(1, 1, 1), "brain": torch.ones(1, 1, 10, 10, 1)}
    for voxels in (1, 100):
        z = torch.zeros(1, 4, 10, 10, 1)
        z[:, 0] = 8.0
        z.flatten(2)[:, 0, :voxels], z.flatten(2)[:, 2, :voxels] = 0.0, 8.0
        losses.append(float(term(trace(z), batch)))
        means.append(float(F.cross_entropy(z, torch.zeros(1, 10, 10, 1).long())))
    assert losses[1] - losses[0] == pytest.approx(math.log(100) / 5, abs=0.01)
    assert means[1] / means[0] > 50


def test_nothing_known_is_zero_with_zero_gradient() -> None:
    z = logits().requires_grad_()
    value = TaggedAbsence()(trace(z), {"slice_label": torch.full((2, 3, 4), UNKNOWN), "brain": brain()})
    value.backward()
    assert float(value.detach()) == 0
    assert not z.grad.any()


def test_sure_logits_stay_finite_and_a_layer_may_be_named() -> None:
    z = (1e4 * logits()).requires_grad_()
    found = Trace(nn.Identity(), ("consensus",), torch.zeros(2, 1, 3, 2, 4), torch.zeros(2, 3), {"consensus": z})
    term = TaggedAbsence(layer="consensus")
    assert term.layers == ("consensus",)
    value = term(found, {"slice_label": tags(), "brain": brain()})
    value.backward()
    assert bool(value.isfinite() & z.grad.isfinite().all())


def test_exceptions() -> None:
    with pytest.raises(ValueError, match=r"slice_label must be \(2, 3, 4\), got \(2, 3, 5\)"):
        TaggedAbsence()(trace(logits()), {"slice_label": torch.zeros(2, 3, 5), "brain": brain()})
    with pytest.raises(ValueError, match="sharpness must be positive, got 0"):
        TaggedAbsence(sharpness=0)
