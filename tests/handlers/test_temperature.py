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


"""Temperatures of annotators: as sure as they are right, on cases of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_rrr.handlers import AnnotatorTemperature, best_temperature
from monai_rrr.inferers import AnnotatorInferer
from monai_rrr.networks import AnnotatorTendencyNet

SURE = (2.0, 0.5, 4.0)
"""How much surer than right the consensus and two annotators are."""


class Known(nn.Module):
    """Log-probabilities that the image holds."""

    def forward(self, image: Tensor) -> Tensor:
        return image


def network() -> AnnotatorTendencyNet:
    """The image is what is right; what comes out is that times ``SURE``."""
    made = AnnotatorTendencyNet(["a", "b"], num_classes=3, backbone=Known(), features=3, width=4, slots=2, queue=1024)
    nn.init.zeros_(made.consensus_head.bias)
    made.consensus_head.weight.data.copy_(torch.eye(3)[..., None, None, None])
    made.temperatures.copy_(1 / torch.tensor(SURE))
    return made


def batch(seed: int, drawn: tuple[bool, bool] = (True, True)) -> dict[str, Any]:
    """Masks drawn voxel by voxel with the probabilities that the image holds."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(1, 3, 20, 20, 20, generator=generator)
    probability = logits.softmax(1).flatten(2)[0].T
    masks = [torch.multinomial(probability, 1, generator=generator).reshape(20, 20, 20) for _ in range(2)]
    logits[..., :4] = 0  # outside of the brain: nothing there counts
    masks[1][..., :4] = 2
    return {"image": logits, "annotations": torch.stack(masks)[None], "annotated": torch.tensor([drawn])}


def test_probabilities_become_as_sure_as_they_are_right() -> None:
    made = network()
    data = [batch(0), batch(1)]
    made.train()
    found = AnnotatorTemperature(made, AnnotatorInferer(), data).solve()
    assert made.training
    assert made.temperatures.tolist() == pytest.approx([1 / factor for factor in SURE])
    assert found[1:].tolist() == pytest.approx([1, 1], rel=0.05)
    few = AnnotatorTemperature(made, AnnotatorInferer(), data, voxels=50)
    assert few.solve().tolist() == few.solve().tolist() != found.tolist()


def test_votes_decide_for_the_consensus_and_who_drew_nothing_keeps_the_temperature() -> None:
    made = network()
    handler = AnnotatorTemperature(made, AnnotatorInferer(), [batch(0, (True, False)), batch(2, (True, False))])
    before = made(batch(3)["image"])
    handler(SimpleNamespace())
    consensus, first, second = made.temperatures.tolist()
    assert first == pytest.approx(1, rel=0.05)
    assert consensus == pytest.approx(first, rel=1e-4), "one annotator: the votes are that one's"
    assert second == pytest.approx(1 / SURE[2])
    after = made(batch(3)["image"])
    assert torch.equal(before.annotators.argmax(2), after.annotators.argmax(2)), "outlines stay"
    assert torch.allclose(before.annotators[:, 0] / SURE[1] * 1 / first, after.annotators[:, 0], rtol=1e-4)
    assert AnnotatorTemperature(made, AnnotatorInferer(), []).solve().tolist() == made.temperatures.tolist()


@pytest.mark.parametrize("truth", [0.3, 1.0, 3.0])
def test_temperature_with_the_least_cross_entropy(truth: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20000, 4, generator=generator)
    target = (logits / truth).softmax(1)
    assert best_temperature(logits, target) == pytest.approx(truth, rel=1e-3)
    certain = nn.functional.one_hot(logits.argmax(1), 4).float()
    assert best_temperature(logits, certain) == pytest.approx(0.1, rel=0.01), "no colder than a tenth"
