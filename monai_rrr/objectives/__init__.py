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

"""What a training step minimizes: named, weighted terms over one recorded forward pass."""

from __future__ import annotations

from .annotator_segmentation import (
    AnnotatorMixture,
    AnnotatorSegmentation,
    ConsensusSegmentation,
    SignedDistance,
    TendencyParsimony,
)
from .attention_consistency import AttentionConsistency
from .attention_mining import AttentionMining
from .base import Objective, Term, Weight
from .classification import Classification, TagClassification
from .equivariance import CrossModalEquivariance, WithinModalEquivariance
from .input_penalty import InputGradientPenalty
from .mutual_learning import MutualLearning
from .nesting import Nesting
from .official2d import official2d
from .prototypes import KernelDiversity, KernelTie, PrototypeContrast, PrototypeDistance
from .right_reasons import RightReasons
from .schedule import Alternation, Ramp
from .tagged_absence import TaggedAbsence
from .tied_segmentation import ImageTags, TiedSegmentation
from .voxel_supervision import VoxelSupervision

__all__ = [
    "Alternation",
    "AnnotatorMixture",
    "AnnotatorSegmentation",
    "AttentionConsistency",
    "AttentionMining",
    "Classification",
    "ConsensusSegmentation",
    "CrossModalEquivariance",
    "ImageTags",
    "InputGradientPenalty",
    "KernelDiversity",
    "KernelTie",
    "MutualLearning",
    "Nesting",
    "Objective",
    "PrototypeContrast",
    "PrototypeDistance",
    "Ramp",
    "RightReasons",
    "SignedDistance",
    "TagClassification",
    "TaggedAbsence",
    "TendencyParsimony",
    "Term",
    "TiedSegmentation",
    "VoxelSupervision",
    "Weight",
    "WithinModalEquivariance",
    "official2d",
]
