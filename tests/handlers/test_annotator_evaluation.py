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
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_rrr.handlers import AnnotatorEvaluation, annotator_regions
from monai_rrr.metrics import generalized_energy_distance, region_scores, threshold_dice
from monai_rrr.utils.distance import signed_distance

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
    for name, told, said in (("a", 3.0, 3.0), ("c", 4.0, 3.5), ("consensus", 3.5, 3.5)):
        row, masks = rows[name, "WT"], [torch.from_numpy(ball(r)[None]) for r in (said, told)]
        scores = region_scores(*masks, (1.0, 2.0, 1.0), ["WT"], ["hd95", "nsd"])["WT"]
        assert [float(row[key]) for key in ("hd95", "nsd")] == pytest.approx([scores["hd95"], scores["nsd"]], abs=1e-4)
        assert float(row["lesions"]) == float(row["lesion_recall"]) == 1
        assert row["brier"] == row["ece"] == row["q_dice"] == row["ged"] == ""
    said, truth = (torch.from_numpy(np.mean([ball(r) for r in pair], 0))[None] for pair in ((3, 3.5), (3, 4)))
    assert float(rows["all", "WT"]["q_dice"]) == pytest.approx(float(threshold_dice(said, truth)), abs=1e-5)


def test_lesions_and_what_is_missed(tmp_path: Path) -> None:
    """Of two lesions one is touched; in another case nothing is predicted."""
    for name in ("x", "y"):
        image = np.zeros((12, 12, 12), np.uint8)
        image[1:3, 1:3, 1:3] = image[7:9, 7:9, 7:9] = 2
        nib.Nifti1Image(image, AFFINE).to_filename(tmp_path / f"{name}.nii.gz")
    cases = [{"case_id": name, "annotations": {"a": str(tmp_path / f"{name}.nii.gz")}} for name in ("x", "y")]
    handler = AnnotatorEvaluation(cases, ["a"], "brats2018", tmp_path / "metrics.csv")
    predicted = torch.zeros(2, 12, 12, 12, dtype=torch.uint8)
    handler.add("y", MetaTensor(predicted.clone(), affine=torch.from_numpy(AFFINE)))
    predicted[1, 2:4, 1, 1] = 2
    handler.add("x", MetaTensor(predicted, affine=torch.from_numpy(AFFINE)))
    rows = {(row["case_id"], row["region"]): row for row in handler.rows if row["annotator"] == "a"}
    assert [rows["x", "WT"][key] for key in ("lesions", "lesion_recall")] == [2, 0.5]
    assert rows["x", "TC"]["lesions"] == 0
    assert "lesion_recall" not in rows["x", "TC"]
    missed = rows["y", "WT"]
    assert [missed[key] for key in ("dice", "nsd", "lesion_recall")] == [0, 0, 0]
    assert missed["hd95"] == pytest.approx(12 * 6**0.5, abs=1e-4), "the diagonal of the whole image"
    assert [rows["y", "ET"][key] for key in ("dice", "nsd", "hd95")] == [1, 1, 0]


def test_calibration(case: dict[str, Any], tmp_path: Path) -> None:
    """Probabilities on a grid of its own: Brier and ECE near to what was drawn, voxel by voxel."""
    probability = torch.zeros(5, 4, 12, 12, 12)
    probability[:, 3] = torch.from_numpy(0.8 * ball(3.5) + 0.1)
    probability[:, 0] = 1 - probability[:, 3]
    geometry = {"affine": AFFINE, "source_affine": AFFINE, "source_shape": np.array([12, 12, 12])}
    classes = MetaTensor(probability.argmax(1).byte(), affine=torch.from_numpy(AFFINE))
    state = SimpleNamespace(
        batch=[{"case_id": "x", "geometry": geometry}], output=[{"pred": classes, "probability": probability}]
    )
    handler = AnnotatorEvaluation([case], ["a", "b", "c", "d"], "brats2018", tmp_path / "metrics.csv")
    handler(SimpleNamespace(state=state))
    rows = {row["annotator"]: row for row in handler.rows if row["region"] == "ET"}
    near = signed_distance(ball(4.0) > 0, (1.0, 2.0, 1.0)) > -8
    assert near.sum() < near.size
    for name, radius in (("a", 3.0), ("c", 4.0), ("consensus", 3.5)):
        truth, said = ball(radius)[near], (0.8 * ball(3.5) + 0.1)[near]
        assert rows[name]["brier"] == pytest.approx(np.square(said - truth).mean(), abs=1e-5)
        gaps = [abs(truth[said > 0.5].mean() - 0.9), abs(truth[said < 0.5].mean() - 0.1)]
        shares = [(said > 0.5).mean(), (said < 0.5).mean()]
        assert rows[name]["ece"] == pytest.approx(np.dot(gaps, shares), abs=1e-5)
    assert "brier" not in rows["all"]


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
