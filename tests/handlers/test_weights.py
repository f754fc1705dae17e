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
from ignite.engine import Engine, Events

from monai_rrr.errors import CheckpointError
from monai_rrr.handlers import WeightsExport, WeightsLoader
from monai_rrr.utils.manifest import read_manifest


def test_weights_go_round(tmp_path):
    path = tmp_path / "models" / "model.pt"
    network, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    engine = Engine(lambda *_: None)
    WeightsExport(network, path, {"intended_use": "research"}).attach(engine)
    engine.run([0], max_epochs=1)
    assert read_manifest(path)["intended_use"] == "research"
    loading = Engine(lambda *_: None)
    WeightsLoader(other, path).attach(loading)
    loading.run([0], max_epochs=1)
    assert torch.equal(other.weight, network.weight)
    plain = torch.load(path, weights_only=True)
    assert type(plain) is dict, "what MONAI's commands and MONAI Label read"
    assert list(plain) == ["weight", "bias"]


def test_nothing_is_exported_by_a_training_that_fails_or_stops(tmp_path):
    path, engine = tmp_path / "model.pt", Engine(lambda engine, _: engine.terminate(skip_completed=True))
    WeightsExport(torch.nn.Linear(2, 3), path).attach(engine)
    engine.run([0], max_epochs=1)

    def fail(*_):
        raise ArithmeticError("fails")

    engine = Engine(fail)
    WeightsExport(torch.nn.Linear(2, 3), path).attach(engine)
    with pytest.raises(ArithmeticError, match="fails"):
        engine.run([0], max_epochs=1)
    assert not path.exists()


def test_weights_of_another_network(tmp_path):
    engine = Engine(lambda *_: None)
    WeightsExport(torch.nn.Linear(2, 3), tmp_path / "model.pt")(engine)
    loader = WeightsLoader(torch.nn.Linear(2, 4), tmp_path / "model.pt")
    engine.add_event_handler(Events.STARTED, loader)
    with pytest.raises(CheckpointError, match=r"checkpoint-mismatch.*has other shapes for bias: \(4,\) and \(3,\)"):
        engine.run([0], max_epochs=1)
