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

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine

from monai_rrr.handlers import ReliabilityHandler
from monai_rrr.networks import MultimodalCAMNet


def test_moves_towards_the_tag_losses_of_the_batch():
    network = MultimodalCAMNet(channels=(4,))
    network.reliability.momentum = 0.5
    before = network.reliability.tag_loss.clone()
    logits = torch.randn(4, 4, 3)
    label = torch.tensor([[1.0, 0, 0], [1, 1, torch.nan], [0, 1, 1], [1, 1, torch.nan]])
    present = torch.ones(4, 4, dtype=torch.bool)
    present[:, 2] = False
    engine = SimpleNamespace(state=SimpleNamespace(output={"pred": logits, "class_label": label, "present": present}))
    ReliabilityHandler(network)(engine)
    for m in range(4):
        for c in range(3):
            rows = [n for n in range(4) if present[n, m] and not label[n, c].isnan()]
            if not rows:
                assert network.reliability.tag_loss[m, c] == before[m, c]
                continue
            mean = F.binary_cross_entropy_with_logits(logits[rows, m, c], label[rows, c])
            assert float(network.reliability.tag_loss[m, c]) == pytest.approx(
                0.5 * float(before[m, c] + mean), rel=1e-5
            )
    assert network.reliability()[2, 0] > 0, "a modality that was never seen keeps its first weight"


def test_attach_runs_after_every_iteration():
    network = MultimodalCAMNet(["a"], num_classes=1, channels=(4,))
    output = {"pred": torch.full((1, 1, 1), 5.0), "class_label": torch.ones(1, 1), "present": torch.ones(1, 1).bool()}
    engine = Engine(lambda *_: output)
    ReliabilityHandler(network).attach(engine)
    engine.run(range(3), max_epochs=1)
    mean = float(F.softplus(torch.tensor(-5.0)))
    assert float(network.reliability.tag_loss) == pytest.approx(mean + 0.98**3 * (0.6931 - mean), rel=1e-4)


def test_a_skipped_step_moves_nothing():
    network = MultimodalCAMNet(channels=(4,))
    before = network.reliability.tag_loss.clone()
    output = {"pred": torch.full((1, 4, 3), torch.nan), "class_label": torch.ones(1, 3), "skipped": "loss"}
    output["present"] = torch.ones(1, 4, dtype=torch.bool)
    ReliabilityHandler(network)(SimpleNamespace(state=SimpleNamespace(output=output)))
    assert torch.equal(network.reliability.tag_loss, before)
