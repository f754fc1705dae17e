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

"""Draws that belong to a case, wherever it stands in a list."""

from __future__ import annotations

import hashlib

__all__ = ["case_draw"]


def case_draw(case_id: str, seed: int = 0) -> float:
    """Return a number in [0, 1), a pure function of case and seed; uniform over cases.

    Example:
        >>> 0 <= case_draw("patient_01") < 1, case_draw("patient_01") == case_draw("patient_01", seed=1)
        (True, False)
    """
    digest = hashlib.sha256(f"{seed}:{case_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
