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

import pytest

from monai_rrr.data import keep_labels

CASES = [{"case_id": f"case_{i}", **({"label": f"case_{i}_seg"} if i % 5 else {})} for i in range(20)]


def labelled(cases: list[dict[str, str]]) -> set[str]:
    return {case["case_id"] for case in cases if "label" in case}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.01, 1), (0.25, 4), (0.26, 5), (1.0, 16)])
def test_exact_share_whatever_the_order(share: float, count: int) -> None:
    kept = keep_labels(CASES, share)
    assert [case["case_id"] for case in kept] == [case["case_id"] for case in CASES]
    assert len(labelled(kept)) == count
    assert labelled(keep_labels(CASES[::-1], share)) == labelled(kept)
    assert labelled(kept) <= labelled(keep_labels(CASES, min(1.0, share + 0.3)))
    assert all(case["label"] == f"{case['case_id']}_seg" for case in kept if "label" in case)
    assert len(labelled(CASES)) == 16, "the cases given are as they were"


def test_seed_changes_the_choice() -> None:
    assert labelled(keep_labels(CASES, 0.5)) != labelled(keep_labels(CASES, 0.5, seed=1))


def test_shuffled_gives_every_mask_to_another_case() -> None:
    plain, shuffled = keep_labels(CASES, 0.5), keep_labels(CASES, 0.5, shuffled=True)
    assert labelled(shuffled) == labelled(plain)
    assert {case["label"] for case in shuffled if "label" in case} == {c["label"] for c in plain if "label" in c}
    assert all(case["label"] != f"{case['case_id']}_seg" for case in shuffled if "label" in case)
    assert all(case["label"] == f"{case['label_of']}_seg" for case in shuffled if "label" in case)


def test_exception() -> None:
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got -0\.1"):
        keep_labels(CASES, -0.1)
    with pytest.raises(ValueError, match="at least two masks to shuffle, got one"):
        keep_labels(CASES, 0.01, shuffled=True)
    assert labelled(keep_labels(CASES, 0.0, shuffled=True)) == set()
