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


"""What the overlays of the bundle for mixed supervision switch off."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from monai_rrr.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "brats_mri_right_reasons" / "configs"
CAM = {"classification", "within_modal", "cross_modal", "mutual_learning", "nesting", "attention_mining", "guidance"}
KERNELS = {"segmentation", "mixture", "tie", "contrast", "distance", "diversity", "parsimony"}
TERMS = CAM | KERNELS | {"consensus", "signed_distance", "tagged_absence"}


def objective(overlay: str | None = None, **weights: float) -> Objective:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("train", overlay) if name])
    for name, weight in weights.items():
        parser[f"objective::weights::{name}"] = weight
    found: Objective = parser.get_parsed_content("objective")
    return found


def off(found: Objective) -> set[str]:
    return {name for name, weight in found.weights_at(1.0).items() if weight == 0}


def test_all_terms_are_on() -> None:
    found = objective()
    assert set(found.terms) == TERMS
    assert off(found) == set()


@pytest.mark.parametrize(
    ("overlay", "terms"),
    [
        ("without_equivariance", {"within_modal", "cross_modal"}),
        ("without_mutual_learning", {"mutual_learning"}),
        ("without_mining", {"attention_mining"}),
        ("without_guidance", {"guidance"}),
        ("without_tendency", KERNELS),
        ("plain_cam", TERMS - {"classification"}),
        ("without_tagged_absence", {"tagged_absence"}),
        ("masks_only", CAM | {"tagged_absence"}),
    ],
)
def test_an_overlay_switches_a_family_off_for_the_whole_training(overlay: str, terms: set[str]) -> None:
    found = objective(overlay)
    assert off(found) == terms
    assert set(found.terms) == TERMS
    for progress in (0.0, 0.3, 0.6):
        assert terms <= {name for name, weight in found.weights_at(progress).items() if weight == 0}


@pytest.mark.parametrize("term", sorted(TERMS))
def test_one_line_switches_one_term_off(term: str) -> None:
    assert off(objective(**{term: 0.0})) == {term}


def test_layers_of_terms_that_are_off_are_not_recorded() -> None:
    assert set(objective("plain_cam").layers) == {"cam.class_maps"}
    assert "cam.class_maps" not in objective("masks_only").layers
