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

"""How well a network tells which slices hold a region, judged by tags alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from monai_rrr.utils.enums import REGIONS

__all__ = ["slice_presence_scores"]


def slice_presence_scores(
    probabilities: Iterable[ArrayLike],
    slice_labels: Iterable[ArrayLike],
    regions: Sequence[str] = REGIONS,
    threshold: float = 0.5,
) -> dict[str, dict[str, float]]:
    """F1, AUROC and average precision of slice presence per region, over all slices of all cases.

    Needs no mask, so it may choose a checkpoint or a setting in a project that has tags only. All three are in [0, 1],
    larger is better. Slices are pooled over cases: long tumors count more than short ones.

    Args:
        probabilities: per case, that a slice holds the region, in [0, 1].
        slice_labels: per case, 1 for slices that the tags mark.
        regions: names of the rows.
        threshold: a slice is predicted when its probability is greater; for F1 only.

    Shape:
        - probabilities, slice_labels: ``RZ`` per case; Z may differ between cases.

    Returns:
        ``{region: {"f1": ..., "auroc": ..., "average_precision": ..., "slices": count, "tagged": count}}``

    Raises:
        ValueError: When shapes do not fit, a probability is outside [0, 1], or a label is neither 0 nor 1.

    Note:
        F1 is 1 when neither tags nor prediction mark any slice. AUROC is NaN when all slices carry the same label, and
        average precision when no slice is tagged: there is nothing to rank.

    Example:
        >>> slice_presence_scores([[[0.1, 0.4, 0.9]]], [[[0, 1, 1]]], regions=["WT"])["WT"]["auroc"]
        1.0
    """
    found = [np.asarray(p, dtype=np.float64) for p in probabilities]
    tagged = [np.asarray(t) for t in slice_labels]
    shapes, expected = [p.shape for p in found], [t.shape for t in tagged]
    if not found or shapes != expected or any(len(s) != 2 or s[0] != len(regions) for s in shapes):
        raise ValueError(
            f"expected cases of equal shape ({len(regions)} regions, slices), got probabilities {shapes} "
            f"and labels {expected}"
        )
    p, t = np.concatenate(found, axis=1), np.concatenate(tagged, axis=1)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probabilities expected values in [0, 1], got {p.min()} to {p.max()}")
    if not np.isin(t, (0, 1)).all():
        raise ValueError(f"slice labels expected 0 or 1, got {sorted(set(t.ravel().tolist()))}")
    return {name: _scores(p[k], t[k].astype(int), threshold) for k, name in enumerate(regions)}


def _scores(p: np.ndarray, t: np.ndarray, threshold: float) -> dict[str, float]:
    tagged = int(t.sum())
    return {
        "f1": float(f1_score(t, p > threshold, zero_division=1.0)),
        "auroc": float(roc_auc_score(t, p)) if 0 < tagged < len(t) else float("nan"),
        "average_precision": float(average_precision_score(t, p)) if tagged else float("nan"),
        "slices": float(len(t)),
        "tagged": float(tagged),
    }
