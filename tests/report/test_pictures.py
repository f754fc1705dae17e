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

import numpy as np
import pytest

from monai_rrr.report import CaseView, Explanation
from monai_rrr.report.case_picture import case_figure
from monai_rrr.report.explanation_files import explanation_figure
from monai_rrr.report.pictures import opacity, visible_from
from monai_rrr.utils.enums import REGIONS

SHAPE = (16, 18, 12)


def sigmoid_map(background: float) -> np.ndarray:
    """A lesion of 0.85 over the background that sigmoid maps have, 0 outside the brain."""
    heatmap = np.zeros(SHAPE, np.float32)
    heatmap[1:-1, 1:-1, 1:-1] = background + 0.02 * np.random.default_rng(0).normal(size=(14, 16, 10))
    heatmap[4:8, 5:9, 4:8] = 0.85
    return heatmap


def brain() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    return mask


def shown_alphas(figure: object) -> list[np.ndarray]:
    alphas = [image.get_alpha() for axis in figure.axes for image in axis.get_images()]
    return [alpha for alpha in alphas if isinstance(alpha, np.ndarray) and alpha.ndim == 2]


@pytest.mark.parametrize("background", [0.0, 0.2, 0.38])
def test_evidence_is_drawn_above_the_background_of_the_map(background: float) -> None:
    heatmap = sigmoid_map(background)
    alpha = opacity(heatmap, visible_from(heatmap, brain()))
    lesion = heatmap == np.float32(0.85)
    assert alpha[lesion].min() > 0.6
    assert alpha[~lesion].max() == 0


def test_no_brain_and_flat_maps() -> None:
    assert visible_from(np.zeros(SHAPE), np.zeros(SHAPE, bool)) == pytest.approx(0.1)
    flat = np.full(SHAPE, 0.999)
    assert not opacity(flat, visible_from(flat, brain())).any()


def test_pictures_show_the_lesion_and_not_the_brain() -> None:
    image, heatmap = brain().astype(np.float32) * 100, sigmoid_map(0.38)
    lesion = heatmap > 0.8
    every = dict.fromkeys(REGIONS, heatmap)
    view = CaseView("a", {"flair": image}, every, {}, dict.fromkeys(REGIONS, lesion), {}, np.eye(4), 0)
    explanation = Explanation(heatmap[None], np.eye(4), (1,), np.zeros(2, np.float32))
    figures = [case_figure(view), explanation_figure(explanation, image[None], [lesion], ["flair"])]
    for figure, count in zip(figures, (4, 1), strict=True):
        alphas = shown_alphas(figure)
        assert len(alphas) == count
        for alpha in alphas:
            assert 16 <= np.count_nonzero(alpha) <= 20, "the lesion is 4 x 4 voxels in a slice"
            assert alpha.max() > 0.6
