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

"""Handlers for MONAI's engines."""

from __future__ import annotations

from .annotator_evaluation import AnnotatorEvaluation, annotator_regions
from .calibration import TagCalibrationHandler
from .checkpoint import TrainingCheckpoint
from .consensus import ConsensusUpdate
from .consensus_estimate import ConsensusEstimate, TrustAnnotator, majority_consensus, vote_consensus
from .evaluation import HeatmapEvaluation
from .prototype_bank import PrototypeUpdate
from .reliability import ReliabilityHandler
from .run_record import RunRecord
from .temperature import AnnotatorTemperature, best_temperature
from .tendency_stages import TendencySchedule, TendencyStages
from .terms import TermLogger, slice_scores, terms_of
from .weights import WeightsExport, WeightsLoader

__all__ = [
    "AnnotatorEvaluation",
    "AnnotatorTemperature",
    "ConsensusEstimate",
    "ConsensusUpdate",
    "HeatmapEvaluation",
    "PrototypeUpdate",
    "ReliabilityHandler",
    "RunRecord",
    "TagCalibrationHandler",
    "TendencySchedule",
    "TendencyStages",
    "TermLogger",
    "TrainingCheckpoint",
    "TrustAnnotator",
    "WeightsExport",
    "WeightsLoader",
    "annotator_regions",
    "best_temperature",
    "majority_consensus",
    "slice_scores",
    "terms_of",
    "vote_consensus",
]
