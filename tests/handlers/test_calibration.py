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

import torch
from ignite.engine import Engine
from torch import nn

from monai_rrr.handlers import TagCalibrationHandler
from monai_rrr.metrics.calibration import calibrate_on_tags


class Volumes(list):
    """Training volumes that fail when somebody looks at a mask."""


class Guarded(dict):
    def __getitem__(self, key):
        assert key not in ("label", "truth"), "calibration must not read a mask"
        return super().__getitem__(key)


def make_volumes(count=3):
    volumes = Volumes()
    for index in range(count):
        heatmap = 0.2 * torch.rand(2, 10, 10, 6)
        tags = torch.zeros(2, 6)
        for k in range(2):
            heatmap[k, 2:8, 2:7, 1 : 4 - k] = 0.6 + 0.1 * k + 0.05 * index
            tags[k, 1 : 4 - k] = 1
        volumes.append(
            Guarded(
                image=heatmap,
                brain=torch.ones(1, 10, 10, 6).bool(),
                present=torch.ones(2).bool(),
                slice_label=tags,
                label="a mask",
            )
        )
    return volumes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("operating_point", torch.tensor([[0.5, 0.0]] * 2))


def infer(image, network, present):
    assert present.shape == (1, 2)
    return image


def test_writes_the_operating_point_of_the_tags_when_training_ends():
    network, volumes = Net(), make_volumes()
    handler = TagCalibrationHandler(network, infer, volumes, spacing=3.0)
    engine = Engine(lambda *_: None)
    handler.attach(engine)
    engine.run([0], max_epochs=1)
    for k in range(2):
        point = calibrate_on_tags(
            [v["image"][k] for v in volumes],
            [v["slice_label"][k] for v in volumes],
            [v["brain"][0] for v in volumes],
            [(3.0, 3.0, 3.0)] * 3,
        )
        torch.testing.assert_close(network.operating_point[k], torch.tensor([point.threshold, point.min_area_mm2]))
        assert 0.2 <= float(network.operating_point[k, 0]) < 0.6 + 0.1 * k


def test_spacing_scales_the_area():
    volumes = make_volumes()
    for volume in volumes:
        volume["image"][:, 0, 0, 5] = 0.99  # one bright voxel in a slice without the region
    fine = TagCalibrationHandler(Net(), infer, volumes, spacing=1.0).calibrate()
    coarse = TagCalibrationHandler(Net(), infer, volumes, spacing=(3.0, 3.0, 5.0)).calibrate()
    assert (fine[:, 1] > 1.0).all()
    assert (fine[:, 1] <= 30.0).all()
    assert (coarse[:, 1] > 9.0).all()
