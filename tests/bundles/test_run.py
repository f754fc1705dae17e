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


"""Bundles as their users run them: train, evaluate, inference and overlays, in processes of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

REGIONS = ("WT", "TC", "ET")
VALUES = {0, 1, 2, 4}  # brats2018


def check_outputs(folder: Path, source: Path, modalities: tuple[str, ...] = ()) -> None:
    """Label map and heatmaps of a case must be in the geometry of its files, for both readers of NIfTI."""
    like = nib.load(source)
    like_sitk = sitk.ReadImage(str(source))
    case = folder.name
    names = [f"heatmap_{region}" for region in REGIONS]
    names += [f"heatmap_{modality}_{region}" for modality in modalities for region in REGIONS]
    record = f"{case}_provenance.json"
    written = [f"{case}_{n}.nii.gz" for n in ["pred", *names]]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*written, record])
    assert set(json.loads((folder / record).read_text())["outputs"]) == set(written)
    for name in ["pred", *names]:
        image = nib.load(folder / f"{case}_{name}.nii.gz")
        assert image.shape == like.shape
        np.testing.assert_allclose(image.affine, like.affine, atol=1e-3)
        array = np.asarray(image.dataobj)
        read = sitk.ReadImage(str(folder / f"{case}_{name}.nii.gz"))
        assert read.GetSize() == like_sitk.GetSize()
        np.testing.assert_allclose(read.GetOrigin(), like_sitk.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(read.GetDirection(), like_sitk.GetDirection(), atol=1e-4)
        np.testing.assert_allclose(read.GetSpacing(), like_sitk.GetSpacing(), atol=1e-4)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read).T, array)
        if name == "pred":
            assert array.dtype == np.uint8
            assert set(np.unique(array).tolist()) <= VALUES
        else:
            assert array.dtype == np.float32
            assert 0 <= array.min() < array.max() <= 1


def test_training_reads_no_mask_and_leaves_a_calibrated_checkpoint(trained: Any) -> None:
    weights = torch.load(trained.root / "models" / "model.pt", weights_only=True)
    assert weights["stem.weight"].shape[:2] == (4, 4)
    assert not torch.equal(weights["reliability.tag_loss"], torch.full((4, 3), 0.6931))
    record = trained.record()
    assert record["status"] == "completed"
    assert record["training_cases"] == 4
    assert record["processes"] == 1
    saved = [[round(float(value), 4) for value in row] for row in weights["operating_point"]]
    assert record["operating_point"] == saved
    steps = trained.rows()
    assert {row["term"] for row in steps} >= {"total", "classification", "within_modal", "cross_modal", "nesting"}
    assert all(np.isfinite(float(row["value"])) for row in steps)
    assert len(list((trained.root / "eval").glob("events.out.tfevents.*"))) == 2


def test_inference_takes_any_modalities_and_no_mask(trained: Any, cohort: Any, tmp_path: Path) -> None:
    cases = sorted(cohort.blind.iterdir())[:2]
    left = {cases[0].name: ("t1c", "flair"), cases[1].name: ("t1", "t1c", "t2")}
    endings = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
    for case in cases:
        (tmp_path / "data" / case.name).mkdir(parents=True)
        for modality in left[case.name]:
            shutil.copy(case / f"{case.name}_{endings[modality]}.nii.gz", tmp_path / "data" / case.name)
    trained.run("inference.yaml", dataset_dir=tmp_path / "data", output_dir=tmp_path / "out")
    for case in cases:
        source = case / f"{case.name}_{endings[left[case.name][0]]}.nii.gz"
        check_outputs(tmp_path / "out" / "cases" / case.name, source, left[case.name])


@pytest.mark.slow
def test_evaluation_scores_held_out_cases(trained: Any, cohort: Any, tmp_path: Path) -> None:
    convention = {"label_convention": "brats2018", "output_dir": tmp_path, "method": "full"}
    trained.run("train.yaml", "evaluate.yaml", dataset_dir=cohort.masked, flips=[0], **convention)
    rows = trained.rows(tmp_path / "metrics.csv")
    held_out = sorted({row["case_id"] for row in rows})
    assert len(held_out) == 2
    for case in held_out:
        mine = [row for row in rows if row["case_id"] == case]
        for threshold in ("label_free", "tag_calibrated", "oracle"):
            kept = [row for row in mine if row["method"] == "full" and row["threshold"] == threshold]
            assert [row["region"] for row in kept] == list(REGIONS)
            for row in kept:
                assert 0 <= float(row["dice"]) <= 1
                assert float(row["hd95"]) >= 0
                assert float(row["assd"]) >= 0
        empty = [row for row in mine if row["method"] == "empty"]
        assert all(float(row["dice"]) == (float(row["truth_ml"]) == 0) for row in empty)
        assert {"flair_otsu", "flair_heuristic", "empty", "full"} == {row["method"] for row in mine}
        check_outputs(tmp_path / "cases" / case, cohort.masked / case / f"{case}_t1.nii.gz")
    calibrated = torch.load(trained.root / "models" / "model.pt", weights_only=True)["operating_point"]
    levels = {row["region"]: float(row["level"]) for row in rows if row["threshold"] == "tag_calibrated"}
    for index, region in enumerate(REGIONS):
        assert levels[region] == pytest.approx(float(calibrated[index, 0]), abs=1e-4)


@pytest.mark.slow
def test_evaluation_without_a_mask_says_so(trained: Any, cohort: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="label"):
        trained.run("train.yaml", "evaluate.yaml", dataset_dir=cohort.blind, output_dir=tmp_path)


@pytest.mark.slow
def test_plain_cam_weighs_only_the_tags(cohort: Any, make_runner: Callable[[], Any]) -> None:
    runner = make_runner()
    data = {"dataset_dir": cohort.blind, "tags_file": cohort.tags}
    runner.train("plain_cam.yaml", **data)
    record = runner.record()
    assert {name for name, weight in record["weights"]["1.0"].items() if weight} == {"classification"}
    assert runner.terms() == {"total", "classification"}
    assert torch.load(runner.root / "models" / "model.pt", weights_only=True)


@pytest.mark.slow
def test_supervised_reads_masks_and_needs_them(cohort: Any, make_runner: Callable[[], Any]) -> None:
    runner = make_runner()
    runner.train("supervised.yaml", dataset_dir=cohort.masked, tags_file=cohort.tags)
    assert runner.terms() == {"total", "masks"}
    with pytest.raises(AssertionError, match="label"):
        runner.train("supervised.yaml", dataset_dir=cohort.blind, tags_file=cohort.tags)


@pytest.mark.slow
def test_wider_network_fits_all_verbs(cohort: Any, make_runner: Callable[[], Any], tmp_path: Path) -> None:
    """The network of full_resolution.yaml has three levels: the grid of whole volumes must still fit it."""
    runner = make_runner()
    small = {"spacing": 6.0, "roi_size": [32, 32, 8], "channels": [4, 4, 4], "num_workers": 0, "amp": False}
    data = {"dataset_dir": cohort.blind, "tags_file": cohort.tags}
    runner.train("full_resolution.yaml", **small, **data)
    options = {"channels": [4, 4, 4], "dataset_dir": cohort.blind, "output_dir": tmp_path}
    runner.run("inference.yaml", flips=[0, 2], per_modality=False, **options)
    assert len(list(tmp_path.glob("cases/*/*_pred.nii.gz"))) == 6


@pytest.mark.slow
def test_damaged_file_stops_training_by_name(cohort: Any, make_runner: Callable[[], Any], tmp_path: Path) -> None:
    shutil.copytree(cohort.blind, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*_flair.nii.gz"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AssertionError, match=r"\[gzip-truncated\] case .*, field flair, file "):
        make_runner().train(dataset_dir=tmp_path / "data", tags_file=cohort.tags)


@pytest.mark.slow
def test_real_cases(
    brats_folder: Path, make_cohort: Callable[[Path], Any], make_runner: Callable[[], Any], tmp_path: Path
) -> None:
    from monai_rrr.data import load_datalist

    for case in load_datalist(brats_folder, with_labels=True)[:3]:
        source = Path(case["label"]).parent
        shutil.copytree(source, tmp_path / "data" / source.name)
    cohort, runner = make_cohort(tmp_path / "data"), make_runner()
    grid = {"spacing": 3.0, "roi_size": [64, 64, 12], "channels": [8]}
    runner.train(dataset_dir=cohort.blind, tags_file=cohort.tags, **grid)
    runner.run("train.yaml", "evaluate.yaml", dataset_dir=cohort.masked, **grid)
    rows = runner.rows(runner.root / "eval" / "metrics.csv")
    held_out = {row["case_id"] for row in rows}
    assert len(held_out) == 1
    assert {row["threshold"] for row in rows if row["method"] == "full"} == {"label_free", "tag_calibrated", "oracle"}
    runner.run("inference.yaml", dataset_dir=cohort.blind, output_dir=tmp_path / "out", per_modality=False, **grid)
    folders = sorted((tmp_path / "out" / "cases").iterdir())
    assert len(folders) == 3
    for folder in folders:
        check_outputs(folder, next((cohort.blind / folder.name).glob("*_t1.nii.gz")))
