"""Scores of masks against masks, thresholds for heatmaps, baselines and intervals."""

from __future__ import annotations

from .baseline import empty_mask, flair_otsu
from .calibration import TagCalibration, calibrate_on_tags, oracle_threshold
from .segmentation import RegionScores, region_scores
from .statistics import Interval, bootstrap_mean, paired_difference
from .threshold import OperatingPoint, apply_threshold, label_free_threshold

__all__ = [
    "Interval",
    "OperatingPoint",
    "RegionScores",
    "TagCalibration",
    "apply_threshold",
    "bootstrap_mean",
    "calibrate_on_tags",
    "empty_mask",
    "flair_otsu",
    "label_free_threshold",
    "oracle_threshold",
    "paired_difference",
    "region_scores",
]
