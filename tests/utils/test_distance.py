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

"""Signed distances against a search over all voxels."""

from __future__ import annotations

import numpy as np
import pytest

from monai_rrr.utils.distance import signed_distance


def slow(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance to the nearest center on the other side, less half a voxel in that direction."""
    out = np.zeros(mask.shape)
    places = np.argwhere(np.ones_like(mask))
    for place in places:
        others = places[mask[tuple(places.T)] != mask[tuple(place)]]
        step = (others - place) * np.array(spacing)
        distance = np.sqrt((step**2).sum(1))
        half = 0.5 * np.sqrt(((step * np.array(spacing)) ** 2).sum(1)) / distance
        out[tuple(place)] = (distance - half)[distance.argmin()] * (1 if mask[tuple(place)] else -1)
    return out


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.7, 1.6, 2.9)])
def test_equals_a_search_over_all_voxels(spacing: tuple[float, ...]) -> None:
    mask = np.random.RandomState(0).uniform(size=(7, 6, 5)) > 0.6
    np.testing.assert_allclose(signed_distance(mask, spacing), slow(mask, spacing), atol=1e-5)


def test_thick_slices_count_half_of_their_own_thickness() -> None:
    mask = np.zeros((5, 5, 4), bool)
    mask[..., 2:] = True
    assert signed_distance(mask, (1.0, 1.0, 5.0))[2, 2].tolist() == [-7.5, -2.5, 2.5, 7.5]
    assert signed_distance(mask.T, (5.0, 1.0, 1.0))[:, 2, 2].tolist() == [-7.5, -2.5, 2.5, 7.5]


@pytest.mark.parametrize("spacing", [1.0, 2.0, 4.0])
def test_a_plane_lies_at_the_same_place_on_every_grid(spacing: float) -> None:
    centers = (np.arange(int(32 / spacing)) + 0.5) * spacing
    found = signed_distance(centers > 16.0, [spacing])
    np.testing.assert_allclose(found, centers - 16.0, atol=1e-6)


def test_nothing_and_everything_have_no_surface() -> None:
    assert (signed_distance(np.zeros((3, 3), bool), (1, 1)) == -np.inf).all()
    assert (signed_distance(np.ones((3, 3), bool), (1, 1)) == np.inf).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0)])
def test_a_wrong_spacing_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="3 positive values in mm"):
        signed_distance(np.zeros((2, 2, 2), bool), spacing)
