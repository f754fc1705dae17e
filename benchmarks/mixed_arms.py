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

"""Arms of ``mixed_supervision.py``: what each case comes with, and which overlays of the bundle are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai_rrr.data import keep_labels

__all__ = ["ARMS", "Arm", "manifest_of"]


@dataclass(frozen=True)
class Arm:
    """What an arm learns from.

    Args:
        tags: whether cases come with their slice tags.
        share: of the training cases that come with masks.
        overlays: of the bundle's ``train.yaml``.
        result: where its masks come from: ``heatmap`` at the threshold that the tags chose, or ``consensus``.
        controls: whether cases that are tagged to have no tumor count as drawn, by an empty mask of every annotator.
        batch_size: slabs of a step; half of them have masks where only some cases do.
    """

    tags: bool = True
    share: float = 0.1
    overlays: tuple[str, ...] = ()
    result: str = "consensus"
    controls: bool = False
    batch_size: int = 2


ARMS = {
    "tags": Arm(share=0.0, result="heatmap"),
    "mixed": Arm(),
    "masks": Arm(tags=False, overlays=("masks_only",)),
    "all": Arm(share=1.0),
    "without_equivariance": Arm(overlays=("without_equivariance",)),
    "without_mutual_learning": Arm(overlays=("without_mutual_learning",)),
    "without_mining": Arm(overlays=("without_mining",)),
    "without_guidance": Arm(overlays=("without_guidance",)),
    "without_tendency": Arm(overlays=("without_tendency",)),
    "without_tagged_absence": Arm(overlays=("without_tagged_absence",)),
    "masks_only": Arm(overlays=("masks_only",)),
    "plain_cam": Arm(share=0.0, overlays=("plain_cam",), result="heatmap"),
    "masks_all": Arm(tags=False, share=1.0, overlays=("masks_only",)),
    "masks_every_term": Arm(tags=False),
    "mixed_controls": Arm(controls=True),
    "mixed_batch_4": Arm(batch_size=4),
}
"""The first four are the comparison. ``masks_only`` is ``mixed`` without any term on class maps or tags, in the same
batches; ``masks_every_term`` is ``masks`` with all of them, by the tags that masks imply. ``mixed_batch_4`` sees as
many slabs with masks as ``masks``."""


def manifest_of(arm: Arm, cases: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Entries of a datalist with what the arm may see.

    Masks are those of a share of all cases, taken from the cases with a tumor, by id and seed: nobody outlines nothing.
    Cases that have neither masks nor tags are left out.

    Args:
        arm: what it learns from.
        cases: with ``tags``, ``annotations`` and ``modalities``.
        seed: of the choice.
    """
    tumors = [{"case_id": case["case_id"], "label": True} for case in cases if case["tags"]["WT"] is not None]
    share = min(1.0, round(arm.share * len(cases)) / len(tumors))
    drawn = {case["case_id"] for case in keep_labels(tumors, share, seed) if "label" in case}
    if arm.controls or arm.share == 1:
        drawn |= {case["case_id"] for case in cases if case["tags"]["WT"] is None}
    entries = []
    for case in cases:
        entry = {"case_id": case["case_id"], "modalities": {m: str(p) for m, p in case["modalities"].items()}}
        if arm.tags:
            entry["tags"] = case["tags"]
        if case["case_id"] in drawn:
            entry["annotations"] = {name: path and str(path) for name, path in case["annotations"].items()}
        if len(entry) > 2:
            entries.append(entry)
    return entries
