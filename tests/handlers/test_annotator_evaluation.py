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


"""Scores of the consensus and of every annotator, from files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_rrr.handlers import AnnotatorEvaluation, annotator_regions
from monai_rrr.metrics import generalized_energy_distance

AFFINE = np.diag([-1.0, 2.0, 1.0, 1.0])  # the first axis runs to the left


def ball(radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(12.0)] * 3, indexing="ij"))
    return (np.square(grid - np.array([4, 6, 6]).reshape(3, 1, 1, 1)).sum(0) < radius**2).astype(np.uint8)


def drawn(folder: Path, name: str, radius: float) -> str:
    nib.Nifti1Image(4 * ball(radius), AFFINE).to_filename(folder / f"{name}.nii.gz")
    return str(folder / f"{name}.nii.gz")


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first * second).sum() / (first.sum() + second.sum()))


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    masks = {"a": drawn(tmp_path, "a", 3.0), "b": None, "c": drawn(tmp_path, "c", 4.0)}
    masks["d"] = {"path": drawn(tmp_path, "d", 4.0), "regions": ["WT"]}
    return {"case_id": "x", "annotations": masks, "label": drawn(tmp_path, "x", 3.5)}


def test_table(case: dict[str, Any], tmp_path: Path) -> None:
    handler = AnnotatorEvaluation([case], ["a", "b", "c", "d"], "brats2018", tmp_path / "metrics.csv")
    radii = (3.5, 3.0, 2.0, 3.5, 2.0)  # consensus, a, b, c, d
    predicted = torch.from_numpy(np.stack([3 * ball(radius) for radius in radii]))
    handler.add("x", MetaTensor(predicted, affine=torch.from_numpy(AFFINE)))
    handler.finish()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = {(row["annotator"], row["region"]): row for row in csv.DictReader(file)}
    names = ("a", "c", "consensus", "all")  # b did not draw, d left regions out
    assert set(rows) == {(name, region) for name in names for region in ("WT", "TC", "ET")}
    assert float(rows["a", "ET"]["dice"]) == 1
    assert float(rows["a", "WT"]["gain"]) == pytest.approx(1 - dice(ball(3.0), ball(3.5)), abs=1e-5)
    assert float(rows["c", "TC"]["gain"]) == 0
    assert float(rows["c", "TC"]["dice"]) == pytest.approx(dice(ball(3.5), ball(4.0)), abs=1e-5)
    assert float(rows["consensus", "WT"]["dice"]) == 1
    assert float(rows["c", "WT"]["truth_ml"]) == pytest.approx(ball(4.0).sum() * 2 / 1000, abs=1e-5)
    assert float(rows["c", "WT"]["pred_ml"]) == pytest.approx(ball(3.5).sum() * 2 / 1000, abs=1e-5)
    said, truth = (torch.from_numpy(np.stack([ball(r) for r in pair]))[:, None] for pair in ((3, 3.5), (3, 4)))
    expected = float(generalized_energy_distance(said, truth))
    assert float(rows["all", "ET"]["ged"]) == pytest.approx(expected, abs=1e-5)
    assert (tmp_path / "metrics_provenance.json").exists()


def test_a_case_without_truth_and_without_tumor(tmp_path: Path) -> None:
    case = {"case_id": "x", "annotations": {"a": drawn(tmp_path, "a", 0.0)}}
    handler = AnnotatorEvaluation([case], ["a"], "brats2018", tmp_path / "metrics.csv")
    handler.add("x", MetaTensor(torch.zeros(2, 12, 12, 12, dtype=torch.uint8), affine=torch.from_numpy(AFFINE)))
    assert [(row["annotator"], row.get("dice"), row.get("ged")) for row in handler.rows] == [
        *[("a", 1.0, None)] * 3,
        *[("all", None, 0.0)] * 3,
    ]


def test_regions_of_a_batch() -> None:
    classes = torch.tensor([[0, 3], [1, 2]]).view(2, 1, 1, 2)
    probability = torch.nn.functional.one_hot(classes, 4).movedim(-1, 1).float()
    item = {
        "pred": torch.cat([probability[:1], probability]),
        "label": torch.tensor([[0, 3], [-1, -1]]).view(2, 1, 1, 2),
    }
    ((found,), (truth,)) = annotator_regions([item])
    assert found.flatten(1).tolist() == [[0, 1], [0, 1], [0, 1], [1, 1], [1, 0], [0, 0]]
    assert truth.flatten(1).tolist() == [[0, 1], [0, 1], [0, 1], [0, 0], [0, 0], [0, 0]]
