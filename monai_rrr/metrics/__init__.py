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

"""Scores of masks and of heatmaps, thresholds for heatmaps, calibration of classifiers, baselines and intervals."""

from __future__ import annotations

from .baseline import empty_mask, flair_otsu
from .calibration import TagCalibration, calibrate_on_tags, oracle_threshold
from .localization import energy_share, half_maximum_iou, outside_sign, pointing_game
from .localization_scores import LOCALIZATION, LocalizationScores
from .segmentation import RegionScores, region_scores
from .slice_presence import slice_presence_scores
from .statistics import Interval, bootstrap_mean, paired_difference
from .threshold import OperatingPoint, apply_threshold, label_free_threshold
from .top_label import TopLabelCalibration

__all__ = [
    "LOCALIZATION",
    "Interval",
    "LocalizationScores",
    "OperatingPoint",
    "RegionScores",
    "TagCalibration",
    "TopLabelCalibration",
    "apply_threshold",
    "bootstrap_mean",
    "calibrate_on_tags",
    "empty_mask",
    "energy_share",
    "flair_otsu",
    "half_maximum_iou",
    "label_free_threshold",
    "oracle_threshold",
    "outside_sign",
    "paired_difference",
    "pointing_game",
    "region_scores",
    "slice_presence_scores",
]
