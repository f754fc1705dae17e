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

"""From a mixed batch to a training step that decodes some classes."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from monai_rrr.data import MixedBatchSampler
from monai_rrr.engines import PrepareDecoding, explanation_update
from monai_rrr.networks import TiedAutoencoder
from monai_rrr.objectives import ImageTags, Objective, TiedSegmentation
from monai_rrr.transforms import OptionalMaskd, RandomClassSubset


def item(index: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(index)
    image = torch.rand(2, 6, 6, 4, generator=generator) + 0.1
    tags = torch.tensor([1.0, float(index % 2), 0.0, 0.0, 0.0])
    label = torch.zeros(5, 6, 6, 4)
    label[0] = 1
    if index % 2:
        label[0, 1:3], label[1, 1:3], image[0, 1:3] = 0, 1, 2
    masked = {"label": label} if index < 2 else {}
    return {"image": image, "brain": torch.ones(1, 6, 6, 4, dtype=torch.bool), "class_label": tags, **masked}


def test_step_with_few_masks() -> None:
    layers = [nn.Conv3d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5)]
    network = TiedAutoencoder(nn.Sequential(*layers), 5)
    items = [item(i) for i in range(8)]
    sampler = MixedBatchSampler(["label" in sample for sample in items], batch_size=4)
    loader = DataLoader(Dataset(items, OptionalMaskd(5)), batch_sampler=sampler)
    before = [p.clone() for p in network.parameters()]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=0.05),
        loss_function=Objective({"tags": ImageTags(0), "segmentation": TiedSegmentation(exclusive=True)}),
        prepare_batch=PrepareDecoding(RandomClassSubset(background=0)),
        iteration_update=explanation_update,
        decollate=False,
    )
    sizes: list[Tensor] = []
    network.segmentation.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
    trainer.run()
    # background, at most one present class, one absent class: 3 of 5
    assert len(sizes) == 2 * len(sampler)
    assert set(sizes) <= {2, 3}
    assert set(trainer.state.output["terms"]) == {"tags", "segmentation"}
    assert all(not torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))


def test_the_draw_follows_the_iteration() -> None:
    batch = {"image": torch.rand(2, 1, 4, 4), "class_label": torch.zeros(2, 9)}
    prepare = PrepareDecoding()
    first = prepare({**batch, "iteration": 1}, "cpu")["class_idx"]
    assert torch.equal(first, prepare({**batch, "iteration": 1}, "cpu")["class_idx"])
    assert any(not torch.equal(first, prepare({**batch, "iteration": n}, "cpu")["class_idx"]) for n in range(2, 8))
