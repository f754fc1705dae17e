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

from .brain_box import BrainBox, make_brain_box, tag_extents
from .cache import BrainBoxCache
from .datalist import Case, load_datalist
from .load import LoadBrainBoxd
from .mixed_batches import MixedBatchSampler, keep_masks
from .nifti import NiftiVolume, read_verified
from .phantom import generate_cohort
from .split import leave_one_fold_out
from .tags import Tags, check_tags, derive_tags, read_tags, slice_labels, tag_budget, write_tags
from .verify import VerifyReport, verify_cases

__all__ = [
    "BrainBox",
    "BrainBoxCache",
    "Case",
    "LoadBrainBoxd",
    "MixedBatchSampler",
    "NiftiVolume",
    "Tags",
    "VerifyReport",
    "check_tags",
    "derive_tags",
    "generate_cohort",
    "keep_masks",
    "leave_one_fold_out",
    "load_datalist",
    "make_brain_box",
    "read_tags",
    "read_verified",
    "slice_labels",
    "tag_budget",
    "tag_extents",
    "verify_cases",
    "write_tags",
]
