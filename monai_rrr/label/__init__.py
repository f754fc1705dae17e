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

"""A labeling server for bundles: MONAI Label, with heatmaps, who and why, and labels that teach where to look.

What needs MONAI Label itself (the extra ``label``, an environment of its own) is in ``app``, ``tasks``, ``datastore``
and ``server``; all else works without it.
"""

from __future__ import annotations

from .evidence import write_evidence
from .model import BundleModel
from .prediction import LABELS, Prediction, to_levels
from .request import InferRequest, TrainRequest
from .score import SCORES, explanation_scores
from .stock import ServedTraining
from .store import CaseStore, Submission
from .training import train_bundle

__all__ = [
    "LABELS",
    "SCORES",
    "BundleModel",
    "CaseStore",
    "InferRequest",
    "Prediction",
    "ServedTraining",
    "Submission",
    "TrainRequest",
    "explanation_scores",
    "to_levels",
    "train_bundle",
    "write_evidence",
]
