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

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_rrr.metrics import (
    LOCALIZATION,
    LocalizationScores,
    energy_share,
    half_maximum_iou,
    outside_sign,
    pointing_game,
)

SPACING = (1.0, 2.0, 1.5)
FUNCTIONS = {
    "epg": energy_share,
    "pointing": lambda h, m: pointing_game(h, m, SPACING[: h.ndim - 2], 2.0),
    "iou": half_maximum_iou,
    "outside_sign": outside_sign,
}


def reference(heatmap: np.ndarray, mask: np.ndarray, brain: np.ndarray, marker: np.ndarray) -> dict[str, float]:
    """Every score of one heatmap of one sample, voxel by voxel."""
    total = positive = inside = signed = on_marker = 0.0
    peak, best = heatmap.max(), None
    both = either = in_brain = brain_size = 0
    for place in np.ndindex(*heatmap.shape):
        value = heatmap[place]
        total += abs(value)
        positive += max(value, 0)
        inside += max(value, 0) * mask[place]
        on_marker += max(value, 0) * marker[place]
        signed += 0 if mask[place] else value
        above = max(value, 0) / max(peak, 1e-12) > 0.5
        both += above and mask[place]
        either += above or mask[place]
        in_brain += brain[place] and mask[place]
        brain_size += brain[place]
        best = place if value == peak else best
    gap = min(np.linalg.norm((np.array(best) - p) * SPACING) for p in np.argwhere(mask))
    epg = inside / positive
    return {
        "epg": epg,
        "pointing": float(gap <= 2.0),
        "iou": both / either,
        "lift": epg / (in_brain / brain_size),
        "outside_sign": signed / total,
        "marker_mass": on_marker / positive,
    }


def draw(seed: int, shape: tuple[int, ...] = (3, 2, 5, 6, 7)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    one = (shape[0], 1, *shape[2:])
    return {
        "heatmap": torch.randn(shape, generator=generator, dtype=torch.float64),
        "mask": torch.rand(one, generator=generator) > 0.8,
        "brain": torch.rand(one, generator=generator) > 0.2,
        "marker": torch.rand(one, generator=generator) > 0.9,
    }


@pytest.mark.parametrize("seed", range(4))
def test_every_score_equals_the_loop(seed: int) -> None:
    data = draw(seed)
    metric = LocalizationScores(spacing=SPACING, tolerance_mm=2.0)
    metric(data["heatmap"], data["mask"], brain=data["brain"], marker=data["marker"])
    for name in LOCALIZATION:
        expected = [
            [
                reference(heatmap, *(data[key][b, 0].numpy() for key in ("mask", "brain", "marker")))[name]
                for heatmap in data["heatmap"][b].numpy()
            ]
            for b in range(3)
        ]
        np.testing.assert_allclose(metric.values(name), expected, rtol=1e-5)
        assert float(metric.aggregate(name)) == pytest.approx(np.mean(expected), rel=1e-5)
        assert float(metric.aggregate(name, 1)) == pytest.approx(np.mean(np.array(expected)[:, 1]), rel=1e-5)
    assert set(metric.undefined().values()) == {0}


def test_uniform_map_scores_the_size_of_the_mask() -> None:
    mask = torch.zeros(1, 1, 4, 4, 4)
    mask[0, 0, 0] = 1
    uniform = torch.full((1, 1, 4, 4, 4), 0.3)
    metric = LocalizationScores(spacing=(1, 1, 1))
    metric(uniform, mask, marker=mask)
    found = {name: float(metric.aggregate(name)) for name in LOCALIZATION}
    assert found == pytest.approx(
        {"epg": 0.25, "pointing": 0.25, "iou": 0.25, "lift": 1, "outside_sign": 0.75, "marker_mass": 0.25}
    )


def test_map_that_is_uniform_in_the_brain_has_lift_one() -> None:
    brain = torch.zeros(1, 1, 8, 8, 8)
    brain[..., 2:6, 2:6, 2:6] = 1
    mask = torch.zeros_like(brain)
    mask[..., 1:4, 2:6, 2:6] = 1  # partly outside of the brain
    metric = LocalizationScores(spacing=(1, 1, 1), scores=["lift"])
    metric(brain, mask, brain=brain)
    metric(torch.ones_like(brain), mask * brain, brain=brain)
    assert metric.values()[:, 0].tolist() == pytest.approx([1.0, 64 / 512])


def test_delta_in_the_mask_is_best() -> None:
    mask = torch.zeros(1, 1, 5, 5)
    mask[0, 0, 2, 2] = 1
    metric = LocalizationScores(spacing=(1, 1), scores=["epg", "pointing", "iou", "outside_sign"])
    metric(mask, mask)
    assert [float(metric.aggregate(name)) for name in metric.scores] == [1, 1, 1, 0]


@pytest.mark.parametrize(("tolerance", "hit"), [(0.0, 0.0), (3.9, 0.0), (4.0, 1.0)])
def test_tolerance_is_in_mm(tolerance: float, hit: float) -> None:
    heatmap, mask = torch.zeros(1, 1, 6, 6, 6), torch.zeros(1, 1, 6, 6, 6)
    mask[0, 0, 3, 1, 3] = heatmap[0, 0, 3, 3, 3] = 1
    assert pointing_game(heatmap, mask, SPACING, tolerance).item() == hit


def test_many_ties_agree_with_few() -> None:
    generator = torch.Generator().manual_seed(0)
    peaks = torch.rand(1, 1, 9, 9, 9, generator=generator) > 0.85
    mask = torch.rand(1, 1, 9, 9, 9, generator=generator) > 0.98
    assert peaks.sum() > 64
    expected = np.mean(
        [
            np.linalg.norm((mask[0, 0].nonzero().numpy() - place) * SPACING, axis=1).min() <= 2.0
            for place in peaks[0, 0].nonzero().numpy()
        ]
    )
    assert 0 < expected < 1
    assert pointing_game(peaks.float(), mask, SPACING, 2.0).item() == pytest.approx(expected)


class TestEmptyCases:
    def test_no_evidence(self) -> None:
        metric = LocalizationScores(spacing=(1, 1))
        mask = torch.ones(3, 1, 4, 4)
        heatmap = torch.stack([torch.zeros(1, 4, 4), -torch.ones(1, 4, 4), torch.ones(1, 4, 4)])
        metric(heatmap, mask, marker=mask)
        assert metric.undefined() == {
            "epg": 2,
            "pointing": 2,
            "iou": 0,
            "lift": 2,
            "outside_sign": 1,
            "marker_mass": 2,
        }
        assert metric.values("iou")[:, 0].tolist() == [0, 0, 1]
        assert float(metric.aggregate("epg")) == 1

    def test_no_mask_no_marker(self) -> None:
        metric = LocalizationScores(spacing=(1, 1))
        metric(torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), marker=torch.zeros(2, 1, 4, 4))
        assert set(metric.undefined().values()) == {2}
        assert bool(metric.aggregate("epg").isnan())
        metric.reset()
        metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        assert metric.undefined()["marker_mass"] == 1

    def test_mask_outside_of_the_brain(self) -> None:
        metric = LocalizationScores(spacing=(1, 1), scores=["epg", "lift"])
        mask = torch.zeros(1, 1, 4, 4)
        mask[..., 0] = 1
        metric(torch.ones(1, 1, 4, 4), mask, brain=1 - mask)
        assert metric.undefined() == {"epg": 0, "lift": 1}


def test_lists_and_meta_tensors() -> None:
    data = draw(0)
    whole = LocalizationScores(spacing=SPACING)
    whole(data["heatmap"], data["mask"], brain=data["brain"], marker=data["marker"])
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    parts = LocalizationScores()
    masks = [MetaTensor(mask, affine=affine) for mask in data["mask"]]
    parts(list(data["heatmap"]), masks, brain=list(data["brain"]), marker=list(data["marker"]))
    for name in LOCALIZATION:
        torch.testing.assert_close(parts.values(name), whole.values(name))
    batch = MetaTensor(data["mask"], affine=affine)
    again = LocalizationScores(scores=["pointing"])
    again(data["heatmap"], batch)
    torch.testing.assert_close(again.values(), whole.values("pointing"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_scale_and_half_precision(name: str) -> None:
    heatmap, mask = draw(1)["heatmap"], draw(1)["mask"]
    expected = FUNCTIONS[name](heatmap, mask)
    torch.testing.assert_close(FUNCTIONS[name](1e3 * heatmap, mask), expected)
    torch.testing.assert_close(FUNCTIONS[name](heatmap.half(), mask).double(), expected.double(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_exception(name: str) -> None:
    with pytest.raises(ValueError, match=r"region \(1, 1, 4, 5\) does not match heatmap \(1, 1, 4, 4\)"):
        FUNCTIONS[name](torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match="finite values, got 16 NaN"):
        FUNCTIONS[name](torch.full((1, 1, 4, 4), torch.nan), torch.zeros(1, 1, 4, 4))


def test_exception_of_the_metric() -> None:
    one: dict[str, Any] = {"y_pred": torch.ones(1, 1, 4, 4), "y": torch.ones(1, 1, 4, 4)}
    with pytest.raises(ValueError, match=r"scores expected some of .*, got \('dice',\)"):
        LocalizationScores(scores=["dice"])
    with pytest.raises(ValueError, match="expected a spacing in mm or a MetaTensor as mask"):
        LocalizationScores()(**one)
    with pytest.raises(ValueError, match="got no masks"):
        LocalizationScores()(one["y_pred"])
    with pytest.raises(ValueError, match="keyword arguments brain and marker, got spacing"):
        LocalizationScores()(**one, spacing=1)
    with pytest.raises(ValueError, match="at least one sample, got none"):
        LocalizationScores().aggregate()
    metric = LocalizationScores((1, 1), scores=["epg"])
    metric(**one)
    with pytest.raises(ValueError, match="expected a score of"):
        metric.aggregate("lift")
    with pytest.raises(ValueError, match="tolerance_mm must be at least 0, got -1"):
        pointing_game(**{"heatmap": one["y_pred"], "mask": one["y"]}, spacing=(1, 1), tolerance_mm=-1)
    with pytest.raises(ValueError, match="spacing expected 2 positive values in mm"):
        pointing_game(**{"heatmap": one["y_pred"], "mask": one["y"]}, spacing=(1, 0))
    with pytest.raises(ValueError, match=r"level must be in \[0, 1\), got 1"):
        half_maximum_iou(one["y_pred"], one["y"], level=1)
