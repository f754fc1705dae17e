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

"""Names of modalities, regions and dictionary keys."""

from __future__ import annotations

from monai.utils import StrEnum

__all__ = ["Modality", "Region", "RRRKeys", "MODALITIES", "REGIONS"]


class Modality(StrEnum):
    """MR contrasts, in the order of the image channels."""

    T1 = "t1"
    T1C = "t1c"
    T2 = "t2"
    FLAIR = "flair"


class Region(StrEnum):
    """Nested tumor regions: ET is part of TC, TC is part of WT."""

    WT = "WT"
    TC = "TC"
    ET = "ET"


class RRRKeys(StrEnum):
    """Keys of a case and of a batch. ``image`` and ``label`` (voxel mask) are MONAI's ``CommonKeys``."""

    CASE_ID = "case_id"
    MODALITIES = "modalities"
    IMAGE = "image"
    LABEL = "label"
    BRAIN = "brain"
    PRESENT = "present"
    CLASS_LABEL = "class_label"
    SLICE_LABEL = "slice_label"
    HEATMAP = "heatmap"
    EVIDENCE_MASK = "evidence_mask"
    HAS_MASK = "has_mask"


MODALITIES: tuple[str, ...] = tuple(str(m) for m in Modality)
REGIONS: tuple[str, ...] = tuple(str(r) for r in Region)
