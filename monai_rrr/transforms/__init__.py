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

"""Transforms on images, labels and heatmaps."""

from __future__ import annotations

from .annotator_output import AnnotatorClassesd, ConsensusToLabeld
from .answer import AnswerLabeld
from .banded_consensus import BandedConsensus
from .class_subset import RandomClassSubset
from .evidence_mask import EvidenceMaskd
from .heatmap_output import HeatmapToLabeld, HeatmapToSourced, SaveHeatmapsd
from .mixed_supervision import MixedSupervisiond
from .modality_dropout import RandModalityDropoutd
from .optional_mask import OptionalMaskd
from .regions import LabelToRegionsd, to_labels, to_regions
from .resample import resample_box
from .slab import RandSlabd
from .source_grid import to_source_grid
from .staple_consensus import StapleConsensus
from .vote_share import vote_share
from .warp import RandomWarp, Warp
from .whole_volume import WholeVolumed

__all__ = [
    "AnnotatorClassesd",
    "AnswerLabeld",
    "BandedConsensus",
    "ConsensusToLabeld",
    "EvidenceMaskd",
    "HeatmapToLabeld",
    "HeatmapToSourced",
    "LabelToRegionsd",
    "MixedSupervisiond",
    "OptionalMaskd",
    "RandModalityDropoutd",
    "RandSlabd",
    "RandomClassSubset",
    "RandomWarp",
    "SaveHeatmapsd",
    "StapleConsensus",
    "Warp",
    "WholeVolumed",
    "resample_box",
    "to_labels",
    "to_regions",
    "to_source_grid",
    "vote_share",
]
