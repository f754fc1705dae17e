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

"""Annotators who change places from case to case: the control of every method that learns who is who."""

from __future__ import annotations

from collections.abc import Sequence

from monai_rrr.data.annotations import drawn_by
from monai_rrr.data.datalist import Case
from monai_rrr.utils.draw import case_draw

__all__ = ["permute_annotators"]


def permute_annotators(cases: Sequence[Case], seed: int = 0) -> list[Case]:
    """Let the annotators of every case change places, so that their ids say nothing about who drew.

    Those who drew a case are shifted by 0, 1, 2, ... places from one case to the next, in an order that depends on the
    ids of the cases and the seed alone. An id thus gets masks of all annotators, equally often in as many cases as
    there are annotators; by chance alone it would keep some of them in a small cohort.

    Args:
        cases: cases with ``annotations``.
        seed: of the order.

    Returns:
        the cases in their order; no case is changed in place. The same ids drew, so that weights stay.

    Example:
        >>> cases = [{"case_id": name, "annotations": {"a1": f"{name}_a1", "a2": f"{name}_a2"}} for name in "xy"]
        >>> [case["annotations"]["a1"] for case in permute_annotators(cases)]
        ['x_a2', 'y_a1']
    """
    ids = [str(case["case_id"]) for case in cases]
    order = sorted(ids, key=lambda case_id: (case_draw(case_id, seed), case_id))
    place_of = {case_id: place for place, case_id in enumerate(order)}
    out = []
    for case_id, case in zip(ids, cases, strict=True):
        names = drawn_by(case)
        shift = place_of[case_id] % max(len(names), 1)
        moved = {name: case["annotations"][names[(place + shift) % len(names)]] for place, name in enumerate(names)}
        out.append({**case, "annotations": {**(case.get("annotations") or {}), **moved}})
    return out
