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

"""Differentiable heatmaps: one recorded forward pass in, a heatmap out, nothing kept."""

from __future__ import annotations

from .attributor import Attributor
from .cam import CAM
from .classmap import ClassMap
from .gradcam import GradCAM
from .guided import GuidedBackprop
from .hirescam import HiResCAM
from .input_gradient import InputTimesGradient
from .integrated import IntegratedGradients
from .layers import find_layers
from .layout import ChannelsLast, TokenGrid
from .lrp import UnrolledLRP
from .lrp_layers import LayerCall, LayerRule
from .lrp_placement import LRPRules
from .lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, WSquare, ZBox, ZPlus
from .normalize import normalize_l2, normalize_max, normalize_minmax, resize_heatmap
from .pooling import masked_log_mean_exp
from .preflight import probe
from .score import ClassScore, argmax_score, positive_score, volume_score
from .tendency import (
    annotator_share,
    assignment,
    deviation,
    mixture,
    prototype_share,
    prototype_similarity,
    responsibility,
    signed_tendency,
)
from .tendency_region import (
    PrototypeMatch,
    annotator_posterior,
    disagreement,
    label_without,
    matching_prototypes,
    saliency_box,
)
from .trace import INPUT, Trace, record

__all__ = [
    "AlphaBeta",
    "Attributor",
    "CAM",
    "ChannelsLast",
    "ClassMap",
    "ClassScore",
    "Epsilon",
    "Flat",
    "Gamma",
    "GradCAM",
    "GuidedBackprop",
    "HiResCAM",
    "INPUT",
    "InputTimesGradient",
    "IntegratedGradients",
    "LRPRules",
    "LayerCall",
    "LayerRule",
    "PrototypeMatch",
    "Rule",
    "TokenGrid",
    "Trace",
    "UnrolledLRP",
    "WSquare",
    "ZBox",
    "ZPlus",
    "annotator_posterior",
    "annotator_share",
    "argmax_score",
    "assignment",
    "deviation",
    "disagreement",
    "find_layers",
    "label_without",
    "masked_log_mean_exp",
    "matching_prototypes",
    "mixture",
    "normalize_l2",
    "normalize_max",
    "normalize_minmax",
    "positive_score",
    "probe",
    "prototype_share",
    "prototype_similarity",
    "record",
    "resize_heatmap",
    "responsibility",
    "saliency_box",
    "signed_tendency",
    "volume_score",
]
