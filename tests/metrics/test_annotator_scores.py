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

"""Dice and gain of each annotator, and lesions by size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_rrr.metrics import AnnotatorScores, LesionRecall, class_regions, found_lesions, region_scores


def random_masks(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) > 0.5).int()


def test_dice_and_gain_equal_those_of_single_cases() -> None:
    pred, truth = random_masks(3, 2, 3, 4, 4, 4, seed=1), random_masks(3, 2, 3, 4, 4, 4, seed=2)
    pred[0, 0, 0], truth[0, 0, 0], truth[1, 1, 2] = 0, 0, 0
    consensus = random_masks(3, 3, 4, 4, 4, seed=3)
    metric = AnnotatorScores(["a1", "a2"])
    metric(pred[:2], truth[:2], consensus=consensus[:2])
    metric(pred[2:], truth[2:], consensus=consensus[2:])
    names = ("WT", "TC", "ET")
    for annotator in (0, 1):
        own, shared = (
            [region_scores(masks, truth[i, annotator], (1, 1, 1), scores=["dice"]) for i, masks in enumerate(group)]
            for group in (pred[:, annotator], consensus)
        )
        for region in names:
            dice = np.array([found[region]["dice"] for found in own])
            gain = dice - np.array([found[region]["dice"] for found in shared])
            found = metric.summary()[f"a{annotator + 1}"][region]
            assert found["dice"] == pytest.approx(dice.mean(), abs=1e-6)
            assert found["gain"] == pytest.approx(gain.mean(), abs=1e-6)
    assert metric.values("gain", "a1").shape == (3, 3)
    assert metric.values("gain", "a1", "TC").shape == (3,)


def test_who_did_not_draw_is_in_no_mean() -> None:
    truth, pred = random_masks(2, 2, 1, 4, seed=1), random_masks(2, 2, 1, 4, seed=2)
    metric = AnnotatorScores(["a1", "a2"], ["WT"])
    metric(pred, truth, consensus=truth[:, 0], annotated=torch.tensor([[True, False], [False, False]]))
    alone = AnnotatorScores(["a1", "a2"], ["WT"])
    alone(pred[:1], truth[:1], consensus=truth[:1, 0])
    assert metric.aggregate("dice") == alone.aggregate("dice", "a1")
    assert torch.isnan(metric.aggregate("gain", "a2"))


def test_a_prediction_without_personality_gains_nothing() -> None:
    truth = random_masks(4, 3, 2, 4, 4, 4)
    consensus = random_masks(4, 2, 4, 4, 4, seed=5)
    metric = AnnotatorScores(["a", "b", "c"], ["WT", "TC"])
    metric(consensus.unsqueeze(1).expand_as(truth), truth, consensus=consensus)
    assert metric.aggregate("gain") == 0


def test_scores_refuse_what_does_not_fit() -> None:
    metric = AnnotatorScores(["a1", "a2"], ["WT"])
    masks = random_masks(1, 2, 1, 4)
    with pytest.raises(ValueError, match="keyword arguments consensus and annotated"):
        metric(masks, masks)
    with pytest.raises(ValueError, match="a consensus without the second axis"):
        metric(masks, masks, consensus=masks)
    with pytest.raises(ValueError, match="at least one case"):
        metric.aggregate()


def test_regions_of_classes_are_nested() -> None:
    classes = torch.tensor([-1, 0, 1, 2, 3]).reshape(5, 1, 1)
    assert class_regions(classes).shape == (3, 5, 1, 1)
    assert class_regions(classes).flatten(1).int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 0, 1], [0, 0, 0, 0, 1]]
    assert class_regions(classes.expand(2, 4, 5, 6, 7)).shape == (2, 4, 3, 5, 6, 7)


def lesions() -> torch.Tensor:
    truth = torch.zeros(1, 1, 20, 20, 20)
    truth[..., 1:3, 1:3, 1:3] = 1  # 8 voxels
    truth[..., 3, 3, 3] = 1  # touches it by a corner: 9
    truth[..., 10:14, 10:14, 10:14] = 1  # 64
    truth[..., 18, 18, 18] = 1
    return truth


def test_lesions_are_counted_by_size() -> None:
    truth = lesions()
    pred = torch.zeros_like(truth)
    pred[..., 13, 13, 13] = 1
    metric = LesionRecall((2.0, 2.0, 2.0), sizes_mm3=[50.0, 200.0, 1000.0])
    metric(pred, truth)
    metric(truth, truth)
    assert metric.counts()[0].tolist() == [[1, 2], [1, 2], [2, 2], [0, 0]]
    assert metric.recall()[0, :3].tolist() == [0.5, 0.5, 1.0]
    assert torch.isnan(metric.recall()[0, 3])
    assert float(metric.aggregate()) == pytest.approx(4 / 6)
    assert float(metric.aggregate(channel=0, size_class=0)) == 0.5


def test_a_limit_belongs_to_the_class_above() -> None:
    metric = LesionRecall((2.0, 2.0, 2.0), sizes_mm3=[8.0, 72.0])
    metric(lesions(), lesions())
    assert metric.counts()[0, :, 1].tolist() == [0, 1, 2]


def test_how_much_of_a_lesion_must_be_found() -> None:
    truth = lesions()[0, 0].numpy()
    pred = np.zeros_like(truth)
    pred[10:14, 10:14, 10:12] = 1
    sizes = [(9.0, False), (64.0, True), (1.0, False)]
    assert found_lesions(pred, truth, (1, 1, 1), overlap=0.49) == sizes
    assert not any(found for _, found in found_lesions(pred, truth, (1, 1, 1), overlap=0.5))


def test_lesions_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="do not match"):
        found_lesions(np.zeros((2, 2)), np.zeros((2, 3)), (1, 1))
    with pytest.raises(ValueError, match=r"overlap must be in \[0, 1\)"):
        found_lesions(np.zeros(2), np.zeros(2), [1], overlap=1.0)
    with pytest.raises(ValueError, match="ascending sizes"):
        LesionRecall((1, 1, 1), [5.0, 1.0])
    with pytest.raises(ValueError, match="truths of the shape"):
        LesionRecall((1, 1, 1))(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 3))
