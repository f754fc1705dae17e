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
from torch import Tensor, nn

from monai_rrr.attribution import CAM, HiResCAM, TokenGrid, record

CLASSES = torch.tensor([[0, 2], [1, 1]])


class Classifier(nn.Module):
    def __init__(self, average: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Softplus())
        self.average = average
        self.head = nn.Linear(4 if average else 4 * 60, 3)

    def forward(self, image: Tensor) -> Tensor:
        features = self.trunk(image)
        return self.head(features.flatten(2).mean(2) if self.average else features.flatten(1))


def traced(average: bool) -> tuple[nn.Module, object]:
    network = Classifier(average).double()
    return network, record(network, torch.rand(2, 2, 5, 4, 3, dtype=torch.float64), ["trunk"])


def test_linear_head_on_flattened_features() -> None:
    network, trace = traced(average=False)
    weight = network.head.weight.view(3, 4, 5, 4, 3)
    expected = torch.stack([(trace.features["trunk"][b, None] * weight[CLASSES[b]]).sum(1) for b in range(2)])
    found = HiResCAM("trunk")(trace, CLASSES)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.flatten(2).sum(2), trace.logits.gather(1, CLASSES) - network.head.bias[CLASSES])
    torch.testing.assert_close(HiResCAM("trunk", relu=True)(trace, CLASSES), expected.relu())


def test_equals_the_closed_form_for_an_averaged_head() -> None:
    network, trace = traced(average=True)
    found, cam = HiResCAM("trunk")(trace, CLASSES), CAM("trunk", "head")(trace, CLASSES)
    torch.testing.assert_close(found, cam)
    parameters = [network.trunk[0].weight, network.head.weight]
    pairs = [torch.autograd.grad(m.pow(3).sum(), parameters, retain_graph=True) for m in (found, cam)]
    for one, other in zip(*pairs, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


def test_layer_that_needs_another_layout() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(1, 4), nn.Linear(4, 3)

        def forward(self, image: Tensor) -> Tensor:
            return self.head(self.embed(image.flatten(1).unsqueeze(2)).mean(1))

    trace = record(Tokens(), torch.rand(2, 1, 4, 3), ["embed"])
    with pytest.raises(
        ValueError, match=r"layer 'embed' needs features B C and 2 spatial dimensions, got \(2, 12, 4\)"
    ):
        HiResCAM("embed")(trace, CLASSES)
    assert HiResCAM("embed", reshape=TokenGrid((4, 3)))(trace, CLASSES).shape == (2, 2, 4, 3)
