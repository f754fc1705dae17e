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

"""Weights of a network of some annotators become a start for others."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet

from monai_rrr.label.start import weights_for
from monai_rrr.networks import AnnotatorTendencyNet, MultimodalCAMNet, RightReasonsNet


def make(names: list[str], seed: int, flagship: bool) -> torch.nn.Module:
    torch.manual_seed(seed)
    decoder = UNet(3, in_channels=4, out_channels=8, channels=(4, 8), strides=(2,))
    network = AnnotatorTendencyNet(names, backbone=decoder, features=8, width=8, slots=2, shared_slots=2, queue=1024)
    for index, one in enumerate(network.tendencies):
        torch.nn.init.constant_(one.gamma, float(index + 1))
    network.shared_bank.frozen[:] = True
    network.tendency_bank.source[:] = 3
    return RightReasonsNet(MultimodalCAMNet(channels=(4,)), network, features=4) if flagship else network


@pytest.mark.parametrize("flagship", [False, True])
def test_what_is_not_an_annotators_stays_and_kernels_go_with_their_id(flagship: bool) -> None:
    served = make(["a", "b", "c"], 0, flagship).state_dict()
    fresh = make(["b", "x"], 1, flagship)
    start = weights_for(fresh.state_dict(), served)
    new = fresh.state_dict()
    fresh.load_state_dict(start)
    prefix = "tendency." if flagship else ""
    assert torch.equal(start[f"{prefix}consensus_head.weight"], served[f"{prefix}consensus_head.weight"])
    assert torch.equal(start[f"{prefix}tendencies.0.weight"], served[f"{prefix}tendencies.1.weight"]), "b"
    assert (start[f"{prefix}tendencies.0.gamma"], start[f"{prefix}tendencies.1.gamma"]) == (2.0, 2.0)
    assert torch.equal(start[f"{prefix}tendencies.1.weight"], new[f"{prefix}tendencies.1.weight"]), "x is new"
    for name in ("annotator_ids", "rho", "prior_weight", "temperatures", "tendency_bank.source", "shared_bank.frozen"):
        assert torch.equal(start[prefix + name], new[prefix + name])
