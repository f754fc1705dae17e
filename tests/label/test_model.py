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

"""A bundle answers one case at a time, with the weights that are there now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_rrr.data import load_datalist
from monai_rrr.errors import CheckpointError, ConfigError, DataError
from monai_rrr.label import BundleModel, CaseStore, TrainRequest, train_bundle
from monai_rrr.label.dicom import study_case
from monai_rrr.label.studies import list_studies
from monai_rrr.utils.tensor_file import read_tensors, write_tensors

SMALL = {"spacing": 6.0, "roi_size": [32, 32, 8], "channels": [4, 8], "slabs_per_case": 1}
GUIDED = "brats_mri_guided_attention"


def test_a_bundle_answers_as_its_weights_are_now(
    untrained: Callable[[str], Path], phantom_cohort: Path, tmp_path: Path
) -> None:
    model = BundleModel(untrained(GUIDED), tmp_path, SMALL)
    case = load_datalist(phantom_cohort)[0]
    first, again = model.predict(case), model.predict(case)
    image = nib.load(case["modalities"]["t1"])
    assert first.label.shape == image.shape
    assert np.array_equal(first.affine, image.affine)
    assert list(first.heatmaps)[:4] == ["WT", "TC", "ET", "t1_WT"]
    assert all(np.array_equal(first.heatmaps[name], again.heatmaps[name]) for name in first.heatmaps)
    mirrored = model.predict(case, mirror=True)
    assert mirrored.heatmap().shape == first.heatmap().shape
    assert not np.array_equal(mirrored.heatmap(), first.heatmap())
    assert not list(tmp_path.rglob("*_pred.nii.gz")), "nothing is written but the cache"
    state = read_tensors(model.weights)
    write_tensors(model.weights, {name: torch.zeros_like(value) for name, value in state.items()})
    flat = model.predict(case).heatmap()
    assert flat.max() == pytest.approx(0.5), "zero weights: a sigmoid of 0 in the brain"
    assert np.median(flat[flat > 0]) == pytest.approx(0.5)
    model.weights.write_bytes(model.weights.read_bytes() + b"x")
    with pytest.raises(ConfigError, match=r"\[bundle-refused\][^$]*model.pt: expected the SHA-256 of its manifest"):
        model.predict(case)
    model.weights.unlink()
    with pytest.raises(CheckpointError, match=r"\[checkpoint-missing\].*POST /train/brats_mri_guided_attention"):
        model.predict(case)


def test_a_folder_without_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[bundle-missing\]"):
        BundleModel(tmp_path, tmp_path)


def test_training_needs_labels(untrained: Callable[[str], Path], phantom_cohort: Path, tmp_path: Path) -> None:
    model = BundleModel(untrained(GUIDED), tmp_path, SMALL)
    before = model.weights.read_bytes()
    store = CaseStore(load_datalist(phantom_cohort), tmp_path / "store")
    with pytest.raises(DataError, match=r"\[label-too-few\].*at least 3 cases, got 0"):
        train_bundle(model, store, TrainRequest())
    assert model.weights.read_bytes() == before


def test_studies_may_be_stacked_files(tmp_path: Path) -> None:
    for name in ("p1.nii.gz", "p2.nii.gz"):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 2), np.float32), np.eye(4)), tmp_path / name)
    found = list_studies(tmp_path, ["t1", "flair"])
    assert [case["case_id"] for case in found] == ["p1", "p2"]
    assert found[0]["volumes"] == {"t1": 0, "flair": 1}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"\[no-cases\]"):
        list_studies(tmp_path / "empty", ["t1"])


def test_series_of_a_study() -> None:
    def one(text: str) -> dict[str, dict[str, list[str]]]:
        return {"0020000E": {"Value": [f"uid of {text}"]}, "0008103E": {"Value": [text]}}

    series = [one(text) for text in ("t1_mprage", "T1 post Gd", "Ax T2 FLAIR", "T2 TSE", "localizer")]
    found = study_case("1.2", series, lambda uid: Path(uid))
    assert found == {
        "case_id": "1.2",
        "modalities": {
            "t1": "uid of t1_mprage",
            "t1c": "uid of T1 post Gd",
            "t2": "uid of T2 TSE",
            "flair": "uid of Ax T2 FLAIR",
        },
    }
    with pytest.raises(DataError, match=r"\[modality-unknown\].*localizer"):
        study_case("1.2", series[-1:], Path)
    with pytest.raises(DataError, match=r"\[ambiguous-file\].*field t2"):
        study_case("1.2", [*series, one("T2 again")], Path)
