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
from numpy.typing import NDArray

from monai_rrr.data.decoy_marker import (
    GLOBAL_MARKERS,
    LOCAL_MARKERS,
    MARKERS,
    Scene,
    draw_marker,
    insert_marker,
    marker_mask,
)

SPACING = (2.0, 2.0, 3.0)


def ball(shape: tuple[int, int, int], center: tuple[float, ...], radius: float) -> NDArray[np.bool_]:
    grid = np.indices(shape).T
    distance = np.linalg.norm((grid - np.array(center)) * SPACING, axis=-1).T
    return distance <= radius


def head() -> tuple[NDArray[np.float32], Scene]:
    shape = (60, 64, 40)
    brain = ball(shape, (30, 32, 20), 50.0)
    volume = np.where(brain, 100 + np.random.RandomState(0).uniform(0, 20, shape), 0).astype(np.float32)
    return volume, Scene(brain, ball(shape, (40, 32, 20), 14.0), SPACING)


def drawn(name: str, scene: Scene, seed: int = 3) -> dict[str, Any]:
    return draw_marker(name, np.random.RandomState(seed), scene)


@pytest.mark.parametrize("name", MARKERS)
def test_parameters_say_everything(name: str) -> None:
    volume, scene = head()
    first, second = drawn(name, scene), drawn(name, scene)
    assert first == second != drawn(name, scene, seed=4)
    before = volume.copy()
    np.testing.assert_array_equal(insert_marker(name, first, volume, scene), insert_marker(name, second, volume, scene))
    np.testing.assert_array_equal(volume, before)


@pytest.mark.parametrize("name", LOCAL_MARKERS)
@pytest.mark.parametrize("seed", range(5))
def test_local_marker_changes_its_voxels_only(name: str, seed: int) -> None:
    volume, scene = head()
    parameters = drawn(name, scene, seed)
    mask = marker_mask(name, parameters, scene)
    changed = insert_marker(name, parameters, volume, scene) != volume
    np.testing.assert_array_equal(changed, mask)
    assert mask.any()
    # the box around the head stays: cropping must not tell who carries a marker
    outside = np.ones_like(mask)
    outside[scene.box] = False
    assert not (mask & outside).any()
    assert scene.lesion is not None
    assert not (mask & scene.lesion).any()
    assert (mask & scene.foreground).any() == (name == "clip")


@pytest.mark.parametrize("name", GLOBAL_MARKERS)
def test_global_marker_has_no_place(name: str) -> None:
    volume, scene = head()
    parameters = drawn(name, scene)
    assert not marker_mask(name, parameters, scene).any()
    changed = insert_marker(name, parameters, volume, scene)
    assert (changed != volume).mean() > 0.5 * scene.foreground.mean()
    if name != "shift":
        np.testing.assert_array_equal(changed != 0, scene.foreground)


def test_letter_can_be_read_in_radiological_view() -> None:
    volume, scene = head()
    mask = marker_mask("letter", {"inset_mm": [0, 0], "brightness": 1.0}, scene)
    plane = mask[::-1, ::-1, 20].T  # first row anterior, first column the patient's right
    rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
    glyph = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert ["".join(".#"[int(v)] for v in row) for row in glyph] == [
        "####.",
        "#...#",
        "#...#",
        "####.",
        "#.#..",
        "#..#.",
        "#...#",
    ]
    assert rows[0] < 20
    assert columns[0] < 20
    value = insert_marker("letter", {"inset_mm": [0, 0], "brightness": 1.0}, volume, scene)[mask]
    assert np.ptp(value) == 0
    assert value[0] == pytest.approx(np.percentile(volume[volume != 0], 99.0))


def test_clip_stays_away_from_lesion_and_edge() -> None:
    volume, scene = head()
    for seed in range(10):
        parameters = drawn("clip", scene, seed)
        center = np.array(parameters["center"])
        assert scene.lesion is not None
        for forbidden in (scene.lesion, ~scene.foreground):
            gap = np.linalg.norm((np.argwhere(forbidden) - center) * SPACING, axis=1).min()
            assert gap > parameters["radius_mm"] + 4.0
    void = insert_marker("clip", parameters, volume, scene)[tuple(center)]
    assert 0 < void < 0.1 * np.median(volume[volume != 0])


def test_no_place_for_a_clip() -> None:
    _, scene = head()
    full = Scene(scene.foreground, scene.foreground, SPACING)
    with pytest.raises(LookupError, match=r"no place for a clip of radius .* mm in the brain outside the lesion"):
        drawn("clip", full)


def test_effects() -> None:
    volume, scene = head()
    inside = scene.foreground
    bias = insert_marker("bias", {"direction": [0, -1, 0], "exponent": 0.5}, volume, scene)
    ratio = (bias / np.maximum(volume, 1))[30, :, 20]
    assert ratio[10] == pytest.approx(np.exp(0.5 * (1 - 2 * (10 - scene.box[1].start + 0.5) / 51)), rel=1e-3)
    blur = insert_marker("blur", {"sigma_mm": 3.0}, volume, scene)
    assert blur[inside].std() < 0.5 * volume[inside].std()
    assert blur[inside].mean() == pytest.approx(volume[inside].mean(), rel=0.01)
    shift = insert_marker("shift", {"anterior_mm": 6.0}, volume, scene)
    np.testing.assert_array_equal(shift[:, 3:], volume[:, :-3])
    noise = insert_marker("noise", {"sigma": 0.1, "seed": 1}, volume, scene)
    assert (noise - volume)[inside].std() == pytest.approx(11.0, rel=0.1)
    thick = insert_marker("slices", {"thickness_mm": 9.0}, volume, scene)
    assert np.ptp(thick[30, 32, 18:21]) == 0
    assert thick[30, 32, 18] == pytest.approx(volume[30, 32, 18:21].mean(), rel=1e-5)


def test_strength() -> None:
    _, scene = head()
    weak, strong = (draw_marker("bias", np.random.RandomState(0), scene, s)["exponent"] for s in (0.5, 1.0))
    assert strong == pytest.approx(2 * weak)
    with pytest.raises(ValueError, match="strength must be positive, got 0"):
        draw_marker("bias", np.random.RandomState(0), scene, 0)
    with pytest.raises(ValueError, match=r"expected a marker of letter, .*, got 'smile'"):
        draw_marker("smile", np.random.RandomState(0), scene)


def test_images_that_are_not_skull_stripped() -> None:
    volume = np.random.RandomState(0).uniform(1, 2, (40, 40, 10)).astype(np.float32)
    scene = Scene(volume > 0, None, (1.0, 1.0, 3.0))
    parameters = drawn("letter", scene)
    mask = marker_mask("letter", parameters, scene)
    np.testing.assert_array_equal(insert_marker("letter", parameters, volume, scene) != volume, mask)
    assert mask[30:, 20:].any()
    assert not mask[:20].any()
