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

from monai_rrr.objectives.erasing import FILLS, blend, soft_mask


def example() -> tuple[torch.Tensor, torch.Tensor]:
    brain = torch.zeros(2, 1, 10, 9, 8)
    brain[:, :, 2:8, 2:8, 1:7] = 1
    return torch.randn(2, 3, 10, 9, 8) * brain + 2 * brain, brain


@pytest.mark.parametrize("fill", FILLS)
def test_background_stays_background_and_kept_parts_stay(fill: str) -> None:
    image, brain = example()
    keep = torch.ones_like(brain)
    keep[:, :, 4:6] = 0
    erased = blend(image, keep, brain, fill, sigma=2.0)
    assert ((erased == 0) == (image == 0)).all() or fill == "zero"
    assert (erased * (1 - brain)).abs().max() == 0
    torch.testing.assert_close(erased * keep, image * keep)
    assert (erased - image)[:, :, 4:6].abs().max() > 0.1
    torch.testing.assert_close(blend(image, torch.ones_like(brain), brain, fill), image)


def test_fill_of_a_flat_image_changes_nothing() -> None:
    _, brain = example()
    image = 3.0 * brain.expand(-1, 2, -1, -1, -1)
    for fill in ("blur", "mean"):
        torch.testing.assert_close(blend(image, torch.zeros_like(brain), brain, fill, 2.0), image, atol=1e-4, rtol=0)


def test_every_modality_is_erased_alike_and_has_its_own_mean() -> None:
    image, brain = example()
    erased = blend(image, torch.zeros_like(brain), brain, "mean")
    means = (image * brain).flatten(2).sum(2) / brain.flatten(2).sum(2)
    torch.testing.assert_close(erased, means[:, :, None, None, None] * brain)


def test_soft_mask() -> None:
    mask = soft_mask(torch.tensor([0.0, 0.5, 1.0]), 0.5, 10.0)
    torch.testing.assert_close(mask, torch.tensor([-5.0, 0.0, 5.0]).sigmoid())


def test_empty_brain_is_left_alone() -> None:
    image = torch.zeros(1, 1, 4, 4)
    for fill in FILLS:
        assert torch.equal(blend(image, torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), fill), image)
