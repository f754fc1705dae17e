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

import csv
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from torch import nn

from monai_rrr.errors import DataError
from monai_rrr.handlers import HeatmapEvaluation
from monai_rrr.metrics.segmentation import region_scores

SHAPE, SPACING = (14, 12, 8), (2.0, 2.0, 3.0)
LPS = np.diag([-2.0, -2.0, 3.0, 1.0])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("operating_point", torch.tensor([[0.5, 0.0], [0.6, 20.0], [0.7, 0.0]]))


def write_case(folder, case_id, shift):
    """A case in LPS with nested boxes; its label, in file orientation, is returned with it."""
    rng = np.random.default_rng(shift)
    brain = np.zeros(SHAPE, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    label = np.zeros(SHAPE, np.uint8)
    label[3 + shift : 9 + shift, 3:9, 2:6] = 2
    label[4 + shift : 8 + shift, 4:8, 2:5] = 1
    label[5 + shift : 7 + shift, 5:7, 3:5] = 4
    modalities = {}
    for name in ("t1", "flair"):
        image = (rng.integers(100, 200, SHAPE) + 300 * (label > 0) * (name == "flair")) * brain
        modalities[name] = str(folder / f"{case_id}_{name}.nii.gz")
        nib.save(nib.Nifti1Image(image.astype(np.int16), LPS), modalities[name])
    path = folder / f"{case_id}_seg.nii.gz"
    nib.save(nib.Nifti1Image(label, LPS), path)
    return {"case_id": case_id, "modalities": modalities, "label": str(path)}, label, brain


def masks_of(label):
    return np.stack([np.isin(label, values) for values in ((1, 2, 4), (1, 4), (4,))])


def heatmap_of(label, brain, seed):
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0, 0.45, (3, *SHAPE))
    return torch.from_numpy((np.where(masks_of(label), 0.35 + noise, noise) * brain).astype(np.float32))


@pytest.fixture
def evaluated(tmp_path):
    found = [write_case(tmp_path, f"case{i}", i) for i in range(2)]
    heatmaps = [heatmap_of(label, brain, i) for i, (_, label, brain) in enumerate(found)]
    handler = HeatmapEvaluation([case for case, _, _ in found], "brats2018", Net(), tmp_path / "eval" / "metrics.csv")
    items = [[{"case_id": case["case_id"]}] for case, _, _ in found]
    outputs = [[{"pred": MetaTensor(h, affine=torch.from_numpy(LPS))}] for h in heatmaps]

    def step(engine, index):
        engine.state.batch = items[index]
        return outputs[index]

    engine = Engine(step)
    handler.attach(engine)
    engine.run([0, 1], max_epochs=1)
    with (tmp_path / "eval" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, found, heatmaps


def pick(rows, **conditions):
    return [row for row in rows if all(row[key] == value for key, value in conditions.items())]


def test_rows(evaluated):
    rows, _, _ = evaluated
    assert {(row["method"], row["threshold"]) for row in rows} == {
        ("full", "label_free"),
        ("full", "tag_calibrated"),
        ("full", "oracle"),
        ("empty", "label_free"),
        ("flair_otsu", "label_free"),
        ("flair_heuristic", "label_free"),
    }
    assert len(pick(rows, method="full")) == 2 * 3 * 3
    assert len(pick(rows, method="empty")) == 2 * 3
    assert {row["region"] for row in pick(rows, method="flair_otsu")} == {"WT"}


def test_fixed_threshold_is_that_of_all_classes(tmp_path):
    case, label, brain = write_case(tmp_path, "case0", 0)
    heatmap = heatmap_of(label, brain, 0)
    options = {"scores": ["dice"], "baselines": False, "fixed": 0.4}
    handler = HeatmapEvaluation([case], "brats2018", Net(), tmp_path / "metrics.csv", **options)
    handler.add("case0", heatmap, LPS)
    rows = [row for row in handler.rows if row["threshold"] == "fixed"]
    masks = np.logical_and.accumulate(heatmap.numpy() > 0.4)
    expected = region_scores(
        torch.from_numpy(masks), torch.from_numpy(masks_of(label)), SPACING, ("WT", "TC", "ET"), ["dice"]
    )
    assert [row["dice"] for row in rows] == [round(expected[r]["dice"], 5) for r in ("WT", "TC", "ET")]
    assert [(row["level"], row["min_area_mm2"]) for row in rows] == [(0.4, 0.0)] * 3


def test_numbers_equal_the_scores_computed_by_hand(evaluated):
    rows, found, heatmaps = evaluated
    for (case, label, brain), heatmap in zip(found, heatmaps, strict=True):
        masks = []
        for values, (threshold, area) in zip(heatmap.numpy(), Net().operating_point.tolist(), strict=True):
            mask = (values > np.float32(threshold)) & brain
            masks.append(mask & (mask.sum((0, 1)) * 4.0 >= area))
        masks = np.logical_and.accumulate(masks)
        truth = masks_of(label)
        scores = region_scores(torch.from_numpy(masks), torch.from_numpy(truth), SPACING)
        for index, region in enumerate(("WT", "TC", "ET")):
            (row,) = pick(rows, case_id=case["case_id"], threshold="tag_calibrated", region=region)
            dice = 2 * (masks[index] & truth[index]).sum() / (masks[index].sum() + truth[index].sum())
            assert float(row["dice"]) == pytest.approx(dice, abs=1e-5)
            for score in ("dice", "hd95", "assd"):
                assert float(row[score]) == pytest.approx(scores[region][score], abs=1e-4)
            assert float(row["truth_ml"]) == pytest.approx(truth[index].sum() * 12 / 1000, abs=1e-3)
            assert float(row["pred_ml"]) == pytest.approx(masks[index].sum() * 12 / 1000, abs=1e-3)
            assert float(row["level"]) == pytest.approx(float(Net().operating_point[index, 0]), abs=1e-4)


def test_the_oracle_is_an_upper_bound_and_the_empty_mask_scores_zero(evaluated):
    rows, _, _ = evaluated

    def mean(threshold, region):
        return np.mean([float(row["dice"]) for row in pick(rows, method="full", threshold=threshold, region=region)])

    for threshold in ("label_free", "tag_calibrated"):
        assert mean("oracle", "WT") >= mean(threshold, "WT") - 0.02, "up to the steps of its grid"
    assert all(float(row["dice"]) == 0 for row in pick(rows, method="empty"))
    assert all(float(row["dice"]) > 0.8 for row in pick(rows, method="flair_otsu"))


def test_a_case_without_mask_is_named(tmp_path):
    case, label, brain = write_case(tmp_path, "a", 0)
    del case["label"]
    handler = HeatmapEvaluation([case], "brats2018", Net(), tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"\[label-missing\] case a, field label: expected a mask to score against"):
        handler.add("a", heatmap_of(label, brain, 0), LPS)


def test_a_heatmap_on_another_grid_is_named(tmp_path):
    case, _, _ = write_case(tmp_path, "a", 0)
    handler = HeatmapEvaluation([case], "brats2018", Net(), tmp_path / "m.csv", baselines=False)
    with pytest.raises(ValueError, match=r"heatmap \(3, 4, 5\) of case a does not match its files \(14, 12, 8\)"):
        handler.add("a", torch.zeros(3, 3, 4, 5), LPS)


def test_fused_map_of_several_and_a_second_run(tmp_path):
    case, label, brain = write_case(tmp_path, "a", 0)
    handler = HeatmapEvaluation(
        [case], "brats2018", Net(), tmp_path / "m.csv", "mine", scores=["dice"], baselines=False
    )
    heatmap = heatmap_of(label, brain, 0)
    handler.add("a", torch.stack([heatmap, torch.zeros_like(heatmap)]), LPS)
    first = handler.rows
    handler.reset()
    assert handler.rows == []
    handler.finish()
    assert not (tmp_path / "m.csv").exists(), "nothing was collected, nothing is written"
    handler.add("a", heatmap, LPS)
    assert handler.rows == first
    assert {row["method"] for row in first} == {"mine"}
    assert SimpleNamespace(**first[0]).region == "WT"
