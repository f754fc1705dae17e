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

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from monai_rrr.report import ParetoPoint, pareto_figure, pareto_front, write_pareto_picture

POINTS = [
    ParetoPoint("task only", 0.0, 0.9, {"EPG": 0.2, "IoU": 0.1}),
    ParetoPoint("energy", 10.0, 0.7, {"EPG": 0.9, "IoU": 0.05}),
    ParetoPoint("energy", 1.0, 0.8, {"EPG": 0.6, "IoU": 0.3}),
    ParetoPoint("L1", 1.0, 0.6, {"EPG": 0.3, "IoU": 0.4}),
]


def test_front_equals_the_loop() -> None:
    rng = np.random.default_rng(0)
    first, second = np.round(rng.random((2, 40)), 1)
    expected = [
        not any(a >= x and b >= y and (a > x or b > y) for a, b in zip(first, second, strict=True))
        for x, y in zip(first, second, strict=True)
    ]
    assert pareto_front(first, second).tolist() == expected
    assert 0 < sum(expected) < 40


def test_equal_points_are_both_on_the_front() -> None:
    assert pareto_front([1, 1], [2, 2]).tolist() == [True, True]


def test_figure_marks_front_and_weights() -> None:
    figure = pareto_figure(POINTS)
    assert [axis.get_xlabel() for axis in figure.axes] == ["EPG", "IoU"]
    filled = []
    for axis in figure.axes:
        single = [line for line in axis.get_lines() if len(line.get_xdata()) == 1]
        dots = {(line.get_xdata()[0], line.get_ydata()[0]): to_hex(line.get_markerfacecolor()) for line in single}
        places = [(point.localization[axis.get_xlabel()], point.f1) for point in POINTS]
        assert set(dots) == set(places)
        filled.append([dots[place] != "#ffffff" for place in places])
        assert sorted(text.get_text() for text in axis.texts) == ["0", "1", "1", "10"]
    assert filled == [[True, True, True, False], [True, False, True, True]]
    [line] = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2]
    assert list(line.get_xdata()) == [0.6, 0.9]  # in the order of the weights


def test_picture(tmp_path: Path) -> None:
    path = write_pareto_picture(POINTS, tmp_path / "pareto.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_exception() -> None:
    with pytest.raises(ValueError, match="expected two finite scores of every point"):
        pareto_front([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"got shapes \(1,\) and \(2,\)"):
        pareto_front([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="all with the same localization scores"):
        pareto_figure([*POINTS, ParetoPoint("x", 1.0, 0.5, {"EPG": 0.1})])
    with pytest.raises(ValueError, match="expected at least one point"):
        pareto_figure([])
