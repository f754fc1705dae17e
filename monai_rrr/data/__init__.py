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

"""From files to cases: data lists, slice tags, checked reading of NIfTI."""

from __future__ import annotations

from .annotations import annotator_weights, check_annotations, load_annotated
from .annotator_permutation import permute_annotators
from .annotator_rules import AnnotatorSettings, simulate_annotator
from .annotator_team import TeamSettings
from .annotators import make_annotators, read_annotators, replay_annotators
from .brain_box import BrainBox, make_brain_box, tag_extents
from .cache import BrainBoxCache
from .datalist import Case, load_datalist
from .decoy import load_decoy, make_decoy, replay_decoy
from .decoy_plan import DecoySettings
from .epoch_loader import EpochLoader
from .image_case import CaseOfImaged, image_case
from .load import LoadBrainBoxd
from .load_annotations import LoadAnnotationsd
from .load_evidence import LoadEvidenced
from .loader import CaseLoader
from .mask_share import keep_labels
from .mixed import load_mixed, supervision
from .mixed_batches import MixedBatchSampler
from .nifti import NiftiVolume, read_verified
from .phantom import generate_cohort
from .pseudonym import pseudonymize
from .split import leave_one_fold_out
from .tags import Tags, check_tags, derive_tags, read_tags, slice_labels, tag_budget, write_tags
from .verified_cache import VerifiedCache
from .verify import VerifyReport, verify_cases, verify_dataset

__all__ = [
    "keep_labels",
    "AnnotatorSettings",
    "BrainBox",
    "BrainBoxCache",
    "Case",
    "CaseLoader",
    "CaseOfImaged",
    "EpochLoader",
    "DecoySettings",
    "LoadAnnotationsd",
    "LoadBrainBoxd",
    "LoadEvidenced",
    "MixedBatchSampler",
    "NiftiVolume",
    "Tags",
    "TeamSettings",
    "VerifiedCache",
    "VerifyReport",
    "annotator_weights",
    "check_annotations",
    "check_tags",
    "derive_tags",
    "generate_cohort",
    "image_case",
    "leave_one_fold_out",
    "load_annotated",
    "load_datalist",
    "load_decoy",
    "load_mixed",
    "make_brain_box",
    "permute_annotators",
    "pseudonymize",
    "make_annotators",
    "make_decoy",
    "read_annotators",
    "read_tags",
    "read_verified",
    "replay_annotators",
    "replay_decoy",
    "simulate_annotator",
    "slice_labels",
    "supervision",
    "tag_budget",
    "tag_extents",
    "verify_cases",
    "verify_dataset",
    "write_tags",
]
