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

"""Losses on heatmaps and heads: pure functions of tensors."""

from __future__ import annotations

from .consistency import AttentionConsistencyLoss
from .evidence import EvidenceLoss
from .heatmap import HeatmapDistanceLoss
from .isnet import ISNetLoss
from .mutual_kl import MutualKLLoss
from .nesting import NestingLoss
from .soft_dice_ce import SoftDiceCELoss

__all__ = [
    "AttentionConsistencyLoss",
    "EvidenceLoss",
    "HeatmapDistanceLoss",
    "ISNetLoss",
    "MutualKLLoss",
    "NestingLoss",
    "SoftDiceCELoss",
]
