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

"""Synthetic cohorts: layout, determinism, content of the label, contrast of the modalities, difficulty."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from monai_rrr.data.anatomy import Subject
from monai_rrr.data.datalist import load_datalist
from monai_rrr.data.field import Grid, fractal_noise, smooth_noise
from monai_rrr.data.phantom import _Frame, _is_control, generate_cohort
from monai_rrr.data.scanner import Scanner
from monai_rrr.data.tumor import TumorPlan, grow
from monai_rrr.data.verify import verify_cases
from monai_rrr.metrics.baseline import flair_otsu
from monai_rrr.utils.enums import MODALITIES

NAMES = ("t1", "t1ce", "t2", "flair", "seg")
CASES = 4
SEED = 5
SPACING = 6.0

Arrays = dict[str, NDArray[Any]]


def load(folder: Path) -> Arrays:
    files = {name: nib.load(folder / f"{folder.name}_{name}.nii.gz") for name in NAMES}
    return {name: np.asarray(nib.as_closest_canonical(file).dataobj) for name, file in files.items()}


def label_ml(arrays: Mapping[str, NDArray[Any]], spacing: float) -> float:
    return float((arrays["seg"] > 0).sum() * spacing**3 / 1000)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return generate_cohort(tmp_path_factory.mktemp("cohort"), CASES, seed=SEED, spacing=SPACING, controls=0.0)


@pytest.fixture(scope="module")
def arrays(cohort: list[Path]) -> list[Arrays]:
    return [load(folder) for folder in cohort]


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    return {record["case_id"]: record for record in json.loads((folder / "cohort.json").read_text())["cases"]}


class TestFiles:
    def test_names(self, cohort: list[Path]) -> None:
        assert [folder.name for folder in cohort] == [f"Phantom_{SEED}_{i:04d}" for i in range(CASES)]
        for folder in cohort:
            assert sorted(p.name for p in folder.iterdir()) == sorted(f"{folder.name}_{n}.nii.gz" for n in NAMES)

    def test_geometry_is_that_of_brats(self, cohort: list[Path]) -> None:
        for name in NAMES:
            image = nib.load(cohort[0] / f"{cohort[0].name}_{name}.nii.gz")
            assert image.shape == (40, 40, 26)
            assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
            assert image.header.get_zooms() == (SPACING,) * 3
            assert image.header.get_data_dtype() == (np.uint8 if name == "seg" else np.int16)
            assert image.header["sform_code"] == image.header["qform_code"] == 1
            # The corner of the first voxel is that of the BraTS frame of 1 mm, whose first center is (0, 239, 0).
            assert image.affine @ [-0.5, -0.5, -0.5, 1] == pytest.approx([0.5, 239.5, -0.5, 1])

    def test_frame_at_1_and_3_mm(self) -> None:
        assert _Frame(1.0).shape == (240, 240, 155)
        assert _Frame(1.0).affine.tolist() == [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
        assert _Frame(3.0).shape == (80, 80, 52)

    def test_loader_and_verification(self, cohort: list[Path]) -> None:
        cases = load_datalist(cohort[0].parent)
        assert [case["case_id"] for case in cases] == [folder.name for folder in cohort]
        assert all(tuple(case["modalities"]) == MODALITIES and "label" in case for case in cases)
        assert verify_cases(cases, "brats2018").faults == ()

    def test_progress(self, tmp_path: Path) -> None:
        calls: list[tuple[int, int]] = []
        folders = generate_cohort(tmp_path, 2, spacing=10.0, progress=lambda done, total: calls.append((done, total)))
        assert calls == [(1, 2), (2, 2)]
        first, second = (load(folder)["t1"] for folder in folders)
        assert not np.array_equal(first > 0, second > 0)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"cases": 0}, "cases must be at least 1, got 0"),
            ({"seed": -1}, "must not be negative, got seed -1 and first 0"),
            ({"first": -2}, "must not be negative, got seed 0 and first -2"),
            ({"spacing": 0.5}, "between 1 and 10 mm, got 0.5"),
            ({"spacing": float("nan")}, "between 1 and 10 mm, got nan"),
            ({"controls": 1.5}, r"controls must be in \[0, 1\], got 1.5"),
        ],
    )
    def test_exception(self, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            generate_cohort(tmp_path / "out", **({"cases": 1} | arguments))
        assert not (tmp_path / "out").exists()


class TestDeterminism:
    def test_case_depends_on_seed_and_index_only(self, cohort: list[Path], tmp_path: Path) -> None:
        again = generate_cohort(tmp_path, 1, seed=SEED, spacing=SPACING, controls=0.0, first=2)
        assert again[0].name == cohort[2].name
        for name in NAMES:
            file = f"{again[0].name}_{name}.nii.gz"
            assert (again[0] / file).read_bytes() == (cohort[2] / file).read_bytes()
        assert manifest(tmp_path)[again[0].name] == manifest(cohort[0].parent)[again[0].name]

    def test_manifest_grows(self, tmp_path: Path) -> None:
        generate_cohort(tmp_path, 1, seed=2, spacing=10.0)
        generate_cohort(tmp_path, 1, seed=2, spacing=10.0, first=9)
        records = manifest(tmp_path)
        assert sorted(records) == ["Phantom_2_0000", "Phantom_2_0009"]
        assert records["Phantom_2_0000"]["tumor"]["whole_ml"] >= 5.0
        assert records["Phantom_2_0009"]["control"] is True
        assert "tumor" not in records["Phantom_2_0009"]

    def test_spacing_keeps_the_tumor(self, arrays: list[Arrays], tmp_path: Path) -> None:
        fine = load(generate_cohort(tmp_path, 1, seed=SEED, spacing=4.0, controls=0.0)[0])
        assert label_ml(fine, 4.0) == pytest.approx(label_ml(arrays[0], SPACING), rel=0.2)
        centers = [(np.argwhere(a["seg"] > 0).mean(0) + 0.5) * s for a, s in ((fine, 4.0), (arrays[0], SPACING))]
        assert np.abs(centers[0] - centers[1]).max() < 4.0


class TestContent:
    def test_background_is_zero_everywhere(self, arrays: list[Arrays]) -> None:
        for case in arrays:
            brain = case["t1"] > 0
            assert 1000 < brain.sum() * SPACING**3 / 1000 < 1900
            for name in ("t1ce", "t2", "flair"):
                assert np.array_equal(case[name] > 0, brain)
                assert case[name].min() == 0
            assert not case["seg"][~brain].any()

    def test_label_values(self, arrays: list[Arrays]) -> None:
        found = [set(np.unique(case["seg"]).tolist()) for case in arrays]
        assert set.union(*found) == {0, 1, 2, 4}
        assert all(values <= {0, 1, 2, 4} and 2 in values for values in found)

    def test_volume_is_as_planned(self, cohort: list[Path], arrays: list[Arrays]) -> None:
        plans = manifest(cohort[0].parent)
        for folder, case in zip(cohort, arrays, strict=True):
            assert label_ml(case, SPACING) == pytest.approx(plans[folder.name]["tumor"]["whole_ml"], rel=0.35)

    def test_contrast(self, arrays: list[Arrays]) -> None:
        """Medians relative to tissue outside the tumor, and their median over the cases."""

        def relative(name: str, value: int) -> float:
            ratios = []
            for case in arrays:
                part, outside = case["seg"] == value, (case["seg"] == 0) & (case["t1"] > 0)
                if part.sum() >= 10:
                    ratios.append(np.median(case[name][part]) / np.median(case[name][outside]))
            return float(np.median(ratios))

        edema, core, enhancing = 2, 1, 4
        assert relative("flair", edema) > 1.1
        assert relative("t2", edema) > 1.05
        assert 0.8 < relative("t1", edema) < 1.1
        assert relative("t1", core) < 0.95
        assert relative("t1ce", core) < 0.95
        assert relative("t2", core) > 1.3
        assert relative("t1ce", enhancing) > 1.15
        assert relative("t1", enhancing) < 1.1

    def test_fluid_is_bright_in_t2_and_dark_in_flair_and_t1(self, arrays: list[Arrays]) -> None:
        for case in arrays:
            healthy = (case["seg"] == 0) & (case["t1"] > 0)
            fluid = healthy & (case["t2"] > np.percentile(case["t2"][healthy], 97))
            for name in ("t1", "flair"):
                assert np.median(case[name][fluid]) < 0.85 * np.median(case[name][healthy])

    def test_units_differ(self, arrays: list[Arrays]) -> None:
        medians = [np.median(case["t1"][case["t1"] > 0]) for case in arrays]
        assert max(medians) > 1.5 * min(medians)

    def test_a_threshold_fails(self, arrays: list[Arrays]) -> None:
        dice = []
        for case in arrays:
            mask, truth = flair_otsu(case["flair"], case["flair"] > 0), case["seg"] > 0
            dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        assert np.mean(dice) < 0.5

    def test_controls(self, tmp_path: Path) -> None:
        folder = generate_cohort(tmp_path, 1, seed=SEED, spacing=10.0, controls=1.0)[0]
        case = load(folder)
        assert not case["seg"].any()
        assert case["flair"].any()
        assert manifest(tmp_path)[folder.name]["control"] is True

    def test_controls_are_spread_evenly(self) -> None:
        assert [i for i in range(30) if _is_control(i, 0.1)] == [9, 19, 29]
        assert sum(_is_control(i, 0.25) for i in range(100)) == 25
        assert not any(_is_control(i, 0.0) for i in range(30))


class TestParts:
    def test_field_does_not_depend_on_the_grid(self) -> None:
        axis = np.arange(-80, 80, 2, dtype=np.float32)
        fine = smooth_noise(np.random.default_rng(1), Grid(axis, axis, axis), 12.0, channels=2)
        coarse = smooth_noise(np.random.default_rng(1), Grid(axis[::4], axis[1::4], axis[2::4]), 12.0, channels=2)
        assert coarse == pytest.approx(fine[:, ::4, 1::4, 2::4], abs=1e-5)
        assert fine.mean() == pytest.approx(0.0, abs=0.1)
        assert fine.std() == pytest.approx(1.0, abs=0.1)

    def test_fractal_noise_is_standardized(self) -> None:
        assert fractal_noise(np.random.default_rng(1), _Frame(5.0).grid(1), 16.0).std() == pytest.approx(1, abs=0.1)

    def test_tissue_fractions_sum_to_one_in_the_brain(self) -> None:
        tissue = Subject(np.random.SeedSequence(3)).tissue(_Frame(8.0).grid(1))
        total = tissue.gm + tissue.wm + tissue.csf
        assert total[tissue.brain] == pytest.approx(1.0, abs=1e-5)
        assert not total[~tissue.brain].any()
        share = [float(part.sum() / total.sum()) for part in (tissue.gm, tissue.wm, tissue.csf)]
        assert share[0] > share[1] > share[2] > 0.03

    def test_kinds_and_regions(self) -> None:
        grid = _Frame(8.0).grid(1)
        tissue = Subject(np.random.SeedSequence(4)).tissue(grid)
        rng = np.random.default_rng(4)
        plans = [TumorPlan.draw(rng, tissue, grid) for _ in range(40)]
        assert {plan.kind for plan in plans} == {"ring", "low_grade", "edematous", "patchy"}
        assert {plan.satellites for plan in plans} == {0, 1, 2}
        assert all(5.0 <= plan.whole_ml <= 150.0 and plan.core_ml < plan.whole_ml for plan in plans)
        for plan in plans[:12]:
            lesion = grow(plan, tissue, grid, rng)
            assert min(part.min() for part in (lesion.ncr, lesion.ed, lesion.et)) > -1e-5
            assert lesion.whole.max() < 1 + 1e-5
            assert not lesion.whole[~tissue.brain].max() > 1e-3
            assert plan.kind != "low_grade" or not lesion.et.any()

    def test_noise_is_rician(self) -> None:
        """Where there is no signal, the magnitude follows Rayleigh's law: mean over deviation is 1.913."""
        brain = np.ones((40, 40, 40), bool)
        scanner = Scanner("t1", 1.0, np.random.default_rng(10))
        stored = scanner.acquire(np.zeros(brain.shape, np.float32), brain, 1.0).astype(float)
        assert stored.mean() / stored.std() == pytest.approx(1.913, rel=0.05)
