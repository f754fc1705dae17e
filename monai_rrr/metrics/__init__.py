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

from .annotator_scores import AnnotatorScores, class_regions
from .assignment import SetAccuracy, set_accuracy, top_one
from .baseline import empty_mask, flair_otsu
from .calibration import TagCalibration, calibrate_on_tags, oracle_threshold
from .disagreement import (
    D_SOFT_THRESHOLDS,
    QUBIQ_THRESHOLDS,
    agreement_matrix,
    annotation_ncc,
    generalized_energy_distance,
    matched_dice,
    threshold_dice,
)
from .lesion_recall import SIZES_MM3, LesionRecall, found_lesions
from .localization import energy_share, half_maximum_iou, outside_sign, pointing_game
from .localization_scores import LOCALIZATION, LocalizationScores
from .prototypes import prototype_purity
from .segmentation import RegionScores, region_scores
from .slice_presence import slice_presence_scores
from .statistics import Interval, bootstrap_mean, paired_difference
from .tendency import Tendency, estimate_tendency, miss_threshold, surface_shift
from .threshold import OperatingPoint, apply_threshold, label_free_threshold
from .top_label import TopLabelCalibration

__all__ = [
    "D_SOFT_THRESHOLDS",
    "LOCALIZATION",
    "QUBIQ_THRESHOLDS",
    "SIZES_MM3",
    "AnnotatorScores",
    "Interval",
    "LesionRecall",
    "LocalizationScores",
    "OperatingPoint",
    "RegionScores",
    "SetAccuracy",
    "TagCalibration",
    "Tendency",
    "TopLabelCalibration",
    "agreement_matrix",
    "annotation_ncc",
    "apply_threshold",
    "bootstrap_mean",
    "calibrate_on_tags",
    "class_regions",
    "empty_mask",
    "energy_share",
    "estimate_tendency",
    "flair_otsu",
    "found_lesions",
    "generalized_energy_distance",
    "half_maximum_iou",
    "label_free_threshold",
    "matched_dice",
    "miss_threshold",
    "oracle_threshold",
    "outside_sign",
    "paired_difference",
    "pointing_game",
    "prototype_purity",
    "region_scores",
    "set_accuracy",
    "slice_presence_scores",
    "surface_shift",
    "threshold_dice",
    "top_one",
]
