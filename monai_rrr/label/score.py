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

"""How much a case deserves a look: numbers of its explanation, larger is more urgent."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_rrr.label.prediction import Prediction
from monai_rrr.metrics.localization import energy_share
from monai_rrr.utils.enums import MODALITIES, REGIONS

__all__ = ["SCORES", "explanation_scores"]

SCORES: dict[str, str] = {
    "evidence_outside": "share of the evidence for the whole tumor that lies outside of the tumor that is drawn",
    "modality_disagreement": "how different the heatmaps of the modalities are",
    "annotator_disagreement": "how much the annotators' versions of the tumor differ",
    "inconsistency": "how much the heatmap changes when the head is mirrored",
}
REGION = REGIONS[0]


def explanation_scores(found: Prediction, mirrored: Prediction | None = None) -> dict[str, float]:
    """Return those of :data:`SCORES` that can be told, each in [0, 1] or, for ``inconsistency``, in [0, 2].

    * ``evidence_outside``: 1 minus the energy-based pointing game of the whole tumor's heatmap and the label map; 1
      where evidence is shown and nothing is drawn.
    * ``modality_disagreement``: 1 minus the cosine similarity of two modalities' heatmaps, mean over all pairs.
    * ``annotator_disagreement``: mean total variation between the two annotators who differ most, over all voxels that
      anybody draws.
    * ``inconsistency``: 1 minus Pearson's correlation of the heatmap with that of the mirrored head.

    Args:
        found: the case.
        mirrored: the same, seen mirrored. None: no ``inconsistency``.
    """
    scores: dict[str, float | None] = {}
    if REGION in found.heatmaps:
        heatmap = found.heatmaps[REGION]
        outside = 1 - float(energy_share(_channel(heatmap), _channel(found.label > 0)))
        scores["evidence_outside"] = outside if np.isfinite(outside) else None
        scores["modality_disagreement"] = _pairs(found)
        if mirrored is not None:
            scores["inconsistency"] = _inconsistency(heatmap, mirrored.heatmaps[REGION])
    if "disagreement" in found.heatmaps:
        drawn = np.any([found.label > 0, *(mask > 0 for mask in found.annotators.values())], axis=0)
        scores["annotator_disagreement"] = float(found.heatmaps["disagreement"][drawn].mean()) if drawn.any() else 0.0
    return {name: round(value, 6) for name, value in scores.items() if value is not None}


def _channel(array: NDArray[Any]) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(array))[None, None]


def _pairs(found: Prediction) -> float | None:
    names = [f"{modality}_{REGION}" for modality in MODALITIES]
    maps = [found.heatmaps[name].ravel() for name in names if name in found.heatmaps]
    if len(maps) < 2:
        return None
    return float(np.mean([1 - _cosine(one, other) for one, other in combinations(maps, 2)]))


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.dot(one, other)) / norm if norm > 0 else 0.0


def _inconsistency(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    seen = (one != 0) | (other != 0)
    if not seen.any():
        return None
    return 1 - _cosine(one[seen] - one[seen].mean(), other[seen] - other[seen].mean())
