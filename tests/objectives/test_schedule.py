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

from monai_rrr.objectives.schedule import Ramp


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.2, 0.0), (0.3, 1.0), (0.4, 2.0), (1.0, 2.0)])
def test_value(progress: float, weight: float) -> None:
    assert Ramp(2.0, start=0.2, stop=0.4)(progress) == pytest.approx(weight)


def test_default_reaches_its_end_at_two_fifths() -> None:
    assert Ramp(1.0)(0.2) == pytest.approx(0.5)
    assert Ramp(1.0)(0.4) == 1.0


def test_step() -> None:
    assert [Ramp(3.0, start=0.5, stop=0.5)(progress) for progress in (0.0, 0.49, 0.5, 1.0)] == [0, 0, 3, 3]


@pytest.mark.parametrize(("start", "stop"), [(0.5, 0.4), (-0.1, 0.4), (0.0, 1.1), (float("nan"), 0.4)])
def test_wrong_times(start: float, stop: float) -> None:
    with pytest.raises(ValueError, match=f"expected 0 <= start <= stop <= 1, got start {start} and stop {stop}"):
        Ramp(1.0, start, stop)


@pytest.mark.parametrize("end_value", [-1.0, float("inf"), float("nan")])
def test_wrong_end_value(end_value: float) -> None:
    with pytest.raises(ValueError, match=f"end_value must be finite and at least 0, got {end_value}"):
        Ramp(end_value)
