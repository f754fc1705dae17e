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


from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from monai_rrr.data import annotator_weights, permute_annotators


def cohort(count: int, absent: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Cases by three annotators; some of them did not draw some."""
    out = []
    for index in range(count):
        case_id = f"c{index}"
        masks = {name: f"{case_id}_{name}.nii.gz" for name in ("a1", "a2", "a3")}
        gone = (absent or {}).get(case_id)
        out.append({"case_id": case_id, "annotations": masks | ({gone: None} if gone else {})})
    return out


def test_ids_say_nothing_about_who_drew() -> None:
    cases = cohort(9)
    before = copy.deepcopy(cases)
    moved = permute_annotators(cases)
    assert cases == before
    assert [case["case_id"] for case in moved] == [case["case_id"] for case in cases]
    for name in ("a1", "a2", "a3"):
        who = Counter(case["annotations"][name].split("_")[1] for case in moved)
        assert who == {"a1.nii.gz": 3, "a2.nii.gz": 3, "a3.nii.gz": 3}
    for case in moved:
        assert sorted(case["annotations"].values()) == sorted(cases[int(case["case_id"][1])]["annotations"].values())


def test_who_did_not_draw_still_did_not() -> None:
    cases = cohort(6, {"c1": "a2", "c4": "a3"})
    moved = {case["case_id"]: case["annotations"] for case in permute_annotators(cases)}
    assert moved["c1"]["a2"] is None
    assert moved["c4"]["a3"] is None
    assert None not in [moved["c1"]["a1"], moved["c1"]["a3"]]
    names = ["a1", "a2", "a3"]
    assert annotator_weights(permute_annotators(cases), names).tolist() == annotator_weights(cases, names).tolist()


def test_it_depends_on_seed_and_ids_alone() -> None:
    cases = cohort(12)
    moved = {case["case_id"]: case["annotations"] for case in permute_annotators(cases, seed=1)}
    turned = {case["case_id"]: case["annotations"] for case in permute_annotators(cases[::-1], seed=1)}
    assert moved == turned
    assert moved != {case["case_id"]: case["annotations"] for case in permute_annotators(cases, seed=2)}
