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


"""Masks of the consensus and of every annotator as files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from monai_rrr.errors import InferenceError
from monai_rrr.transforms import AnnotatorClassesd, to_source_grid


def make_case() -> dict[str, Any]:
    """Two annotators on a grid of 2 mm whose axes are mirrored and swapped in the file of 1 mm."""
    classes = torch.zeros(3, 6, 6, 6, dtype=torch.int64)
    classes[0, 1:3, 1:3, 2:4], classes[1, 1:3, 1:3, 2:4], classes[2, 3:5, 3:5, 3:5] = 1, 2, 3
    probability = torch.nn.functional.one_hot(classes, 4).movedim(-1, 1).float()
    slab, source = np.diag([2.0, 2, 2, 1]), np.eye(4)
    slab[:3, 3] = 0.5
    source[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    source[0, 3] = 11
    geometry = {"affine": slab, "source_affine": source, "source_shape": np.array([12, 12, 12])}
    return {"case_id": "x", "pred": probability, "geometry": geometry, "source_sha256": {"t1": "1" * 64, "t2": ""}}


def test_classes_lie_where_the_file_has_them() -> None:
    case = AnnotatorClassesd()(make_case())
    assert torch.equal(case["probability"], make_case()["pred"])
    found = case["pred"]
    assert found.shape == (3, 12, 12, 12)
    assert found.dtype == torch.uint8
    for index, (label, place) in enumerate([(1, (1, 1, 2)), (2, (1, 1, 2)), (3, (3, 3, 3))]):
        voxels = (found[index] == label).nonzero().double()
        world = voxels @ found.affine[:3, :3].T + found.affine[:3, 3]
        torch.testing.assert_close(world.mean(0), 2 * torch.tensor(place).double() + 1.5)
        assert set(found[index].unique().tolist()) == {0, label}


def test_the_first_of_equals_as_where_nothing_is() -> None:
    case = make_case()
    case["pred"][2, :, 3, 3, 3] = torch.tensor([0.1, 0.4, 0.4, 0.1])
    case["geometry"]["source_shape"] = np.array([16, 12, 12])  # four planes beyond the slab
    found = AnnotatorClassesd()(case)["pred"].numpy()
    expected = to_source_grid(case["pred"][2], case["geometry"]).argmax(0)
    assert expected.any()
    np.testing.assert_array_equal(found[2], expected)


def test_maps_that_are_not_finite() -> None:
    case = make_case()
    case["pred"][1, 2, 0, 0, 0] = torch.nan
    with pytest.raises(InferenceError, match="finite"):
        AnnotatorClassesd()(case)
