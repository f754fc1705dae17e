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

"""Heatmaps as predictions of MONAI's engines."""

from __future__ import annotations

from .annotator_probability import AnnotatorInferer
from .heatmap import HeatmapInferer
from .randomization import heatmap_similarity, randomization_check, randomized_copies
from .right_reasons import RightReasonsInferer
from .slab import SlabHeatmapInferer
from .slab_relevance import SlabRelevanceInferer
from .tendency import RegionTendency, TendencyMaps, explain_regions, tendency_maps, voxel_saliency_box

__all__ = [
    "AnnotatorInferer",
    "HeatmapInferer",
    "RegionTendency",
    "RightReasonsInferer",
    "SlabHeatmapInferer",
    "SlabRelevanceInferer",
    "TendencyMaps",
    "explain_regions",
    "heatmap_similarity",
    "randomization_check",
    "randomized_copies",
    "tendency_maps",
    "voxel_saliency_box",
]
