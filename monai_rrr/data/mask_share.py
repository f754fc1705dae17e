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

"""Masks for a share of the cases only, or for the wrong ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai_rrr.data.datalist import Case
from monai_rrr.utils.draw import case_draw

__all__ = ["keep_labels"]


def keep_labels(cases: Sequence[Case], share: float, seed: int = 0, shuffled: bool = False) -> list[Case]:
    """Keep the masks of a share of the cases, and drop those of the others.

    Which cases these are depends on their ids and the seed, not on their order; a larger share contains a smaller one.

    Args:
        cases: cases as :func:`load_datalist` lists them; those without ``label`` stay without.
        share: of the cases that have a label, in [0, 1]; rounded up to whole cases.
        seed: of the choice.
        shuffled: give each kept mask to another of these cases: the control of training with masks.

    Returns:
        the cases in their order; no case is changed in place. Shuffled masks come with ``label_of``, the case they
        belong to.

    Raises:
        ValueError: When ``share`` is not in [0, 1], or fewer than two masks are to be shuffled.

    Example:
        >>> cases = [{"case_id": name, "label": f"{name}_seg.nii.gz"} for name in "abcd"]
        >>> ["label" in case for case in keep_labels(cases, 0.5)].count(True)
        2
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    labels = {str(case["case_id"]): case["label"] for case in cases if "label" in case}
    order = sorted(labels, key=lambda case_id: (case_draw(case_id, seed), case_id))
    kept = order[: math.ceil(round(share * len(order), 6))]
    if shuffled and len(kept) == 1:
        raise ValueError("expected at least two masks to shuffle, got one: give a larger share")
    source = dict(zip(kept, kept[1:] + kept[:1] if shuffled else kept, strict=True))
    out = []
    for case in cases:
        plain = {key: value for key, value in case.items() if key != "label"}
        case_id = str(case["case_id"])
        if case_id in source:
            plain["label"] = labels[source[case_id]]
            if shuffled:
                plain["label_of"] = source[case_id]
        out.append(plain)
    return out
