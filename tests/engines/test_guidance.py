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


"""Plain classifiers look where masks allow it: the whole step, on tiny cubes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.networks.nets import DenseNet121, resnet18
from monai.utils import set_determinism
from torch import Tensor, nn

from monai_rrr.attribution import CAM, InputTimesGradient, record
from monai_rrr.engines import PrepareViews, explanation_update
from monai_rrr.objectives import AttentionConsistency, AttentionMining, Classification, Objective, RightReasons
from monai_rrr.transforms import EvidenceMaskd

SIZE = (12, 12, 6)


def cube(index: int, marker: bool = True) -> dict[str, Any]:
    """Noise; positive cases have a faint cube, and a bright marker in the corner that a shortcut can use."""
    generator = np.random.default_rng(index)
    image = generator.normal(0, 0.3, (1, *SIZE)).astype(np.float32)
    positive = index % 2
    label = np.zeros((1, *SIZE), np.float32)
    x, y, z = generator.integers(4, 8), generator.integers(4, 8), generator.integers(1, 3)
    label[0, x : x + 4, y : y + 4, z : z + 3] = 1
    image += 1.0 * positive * label
    if marker and positive:
        image[0, :3, :3] += 3.0
    item = {
        "image": torch.from_numpy(image),
        "class_label": torch.tensor([float(positive)]),
        "case_id": f"case_{index}",
    }
    return {**item, "label": torch.from_numpy(label)} if positive and index < 16 else item


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv3d(1, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv3d(8, 8, 3, padding=1), nn.LeakyReLU(0.1)]
        self.trunk, self.head = nn.Sequential(*layers), nn.Linear(8, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.trunk(image).flatten(2).mean(2))


def trained(control: str | None, epochs: int = 25) -> tuple[nn.Module, list[float]]:
    set_determinism(0)
    network, losses = Small(), []
    terms: dict[str, Any] = {"classification": Classification()}
    if control is not None:
        terms["guidance"] = RightReasons(CAM("trunk", "head"), control=control)
    data = Dataset([cube(index) for index in range(32)], EvidenceMaskd(channels=1))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(data, batch_size=8, shuffle=True),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 5e-3),
        loss_function=Objective(terms),
        prepare_batch=PrepareViews(),
        iteration_update=explanation_update,
        decollate=False,
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["terms"]["classification"]))
    )
    trainer.run()
    return network, losses


def energy_inside(network: nn.Module) -> float:
    """Share of positive evidence inside the cube, on positive cases with a mask that training never saw."""
    cases = [cube(index) for index in range(1, 16, 2)]
    shifted = [{**c, "image": c["image"].roll(1, 2)} for c in cases]
    image = torch.stack([c["image"] for c in shifted])
    label = torch.stack([c["label"].roll(1, 2) for c in shifted])
    trace = record(network, image, ["trunk"])
    heatmap = CAM("trunk", "head")(trace, torch.zeros(len(image), dtype=torch.long)).clamp(min=0)
    return float(((heatmap * label).sum() / heatmap.sum()).detach())


def test_learning() -> None:
    """Without guidance evidence sits on the marker; with true masks it moves into the cube, with inverted ones out.

    The faint cube is the harder way to the same answer: in these few epochs the guided networks know where to look, but
    not yet what to answer, so only the plain one is asked for its loss.
    """
    plain, losses = trained(None)
    guided, wrong = trained("none")[0], trained("inverted")[0]
    assert np.mean(losses[-4:]) < 0.2 * np.mean(losses[:4])
    assert energy_inside(plain) < 0.4
    assert energy_inside(guided) > 0.6
    assert energy_inside(wrong) < 0.3


@pytest.mark.parametrize("kind", ["DenseNet121", "ResNet18"])
def test_classifiers_of_monai(kind: str) -> None:
    set_determinism(0)
    if kind == "DenseNet121":
        network: nn.Module = DenseNet121(2, 1, 2)
        cam = CAM("class_layers.relu", "class_layers.out")
    else:
        network = resnet18(spatial_dims=2, n_input_channels=1, num_classes=2, conv1_t_stride=1, no_max_pool=True)
        cam = CAM("layer4", "fc")
    image = torch.randn(2, 1, 32, 32)
    batch = {
        "image": image,
        "class_label": torch.tensor([0, 1]),
        "evidence_mask": (torch.rand(2, 1, 32, 32) > 0.5).float(),
        "has_mask": torch.tensor([True, False]),
    }
    terms = {
        "classification": Classification(),
        "mining": AttentionMining(cam),
        "guidance": RightReasons(cam),
        "consistency": AttentionConsistency(cam, InputTimesGradient("none")),
    }
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 1e-3),
        loss_function=Objective(terms),
        prepare_batch=PrepareViews(),
        iteration_update=explanation_update,
        decollate=False,
    )
    before = {name: value.clone() for name, value in network.named_parameters()}
    trainer.run()
    assert set(trainer.state.output["terms"]) == set(terms)
    still = {name for name, value in network.named_parameters() if torch.equal(value, before[name])}
    # batch normalization takes a bias before it out again: its gradient is rounding
    assert still <= {name for name in before if name.endswith("downsample.0.bias")}
    assert trainer.state.output.keys().isdisjoint({"skipped"})
    assert all(not module._forward_hooks for module in network.modules())
