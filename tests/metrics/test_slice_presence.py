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

import math

import numpy as np
import pytest

from monai_rrr.metrics import slice_presence_scores


def _cases(seed=0):
    rng = np.random.default_rng(seed)
    labels = [(rng.random((3, depth)) < 0.4).astype(float) for depth in (10, 7, 12)]
    return [np.clip(0.3 + 0.4 * t + rng.normal(0, 0.3, t.shape), 0, 1) for t in labels], labels


def test_equals_brute_force():
    probabilities, labels = _cases()
    found = slice_presence_scores(probabilities, labels)
    p, t = np.concatenate(probabilities, axis=1), np.concatenate(labels, axis=1).astype(bool)
    for k, region in enumerate(("WT", "TC", "ET")):
        pairs = p[k][t[k]][:, None] - p[k][~t[k]][None]
        hits = ((p[k] > 0.5) & t[k]).sum()
        assert found[region]["auroc"] == pytest.approx(np.mean(pairs > 0) + np.mean(pairs == 0) / 2)
        assert found[region]["f1"] == pytest.approx(2 * hits / ((p[k] > 0.5).sum() + t[k].sum()))
        assert (found[region]["slices"], found[region]["tagged"]) == (29, t[k].sum())


def test_threshold_is_strict_and_for_f1_only():
    at = [slice_presence_scores([[[0.2, 0.6]]], [[[0, 1]]], ["WT"], threshold)["WT"] for threshold in (0.5, 0.6)]
    assert [scores["f1"] for scores in at] == [1.0, 0.0]
    assert at[0]["auroc"] == at[1]["auroc"] == at[0]["average_precision"] == 1.0


def test_absent_region():
    found = slice_presence_scores([[[0.1, 0.2]]], [[[0, 0]]], ["ET"])["ET"]
    assert found["f1"] == 1.0
    assert math.isnan(found["auroc"])
    assert math.isnan(found["average_precision"])
    everywhere = slice_presence_scores([[[0.9, 0.2]]], [[[1, 1]]], ["WT"])["WT"]
    assert everywhere["f1"] == pytest.approx(2 / 3)
    assert math.isnan(everywhere["auroc"])
    assert everywhere["average_precision"] == 1.0


@pytest.mark.parametrize(
    ("probabilities", "labels", "match"),
    [
        ([], [], r"\(1 regions, slices\), got probabilities \[\] and labels \[\]"),
        ([[[0.1, 0.2]]], [[[1]]], r"got probabilities \[\(1, 2\)\] and labels \[\(1, 1\)\]"),
        ([[0.1, 0.2]], [[1, 0]], r"got probabilities \[\(2,\)\]"),
        ([[[0.1, 1.2]]], [[[1, 0]]], r"probabilities expected values in \[0, 1\], got 0.1 to 1.2"),
        ([[[0.1, math.nan]]], [[[1, 0]]], r"probabilities expected values in \[0, 1\]"),
        ([[[0.1, 0.2]]], [[[1, 2]]], r"slice labels expected 0 or 1, got \[1, 2\]"),
    ],
)
def test_exception(probabilities, labels, match):
    with pytest.raises(ValueError, match=match):
        slice_presence_scores(probabilities, labels, ["WT"])
