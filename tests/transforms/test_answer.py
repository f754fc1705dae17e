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

"""The answer to a server's request."""

from __future__ import annotations

import numpy as np
import torch

from monai_rrr.transforms import AnswerLabeld

GEOMETRY = {"source_affine": np.diag([2.0, 2.0, 3.0, 1.0])}


def test_without_a_request_nothing_happens() -> None:
    sample = {"pred": torch.zeros(3, 2, 2, 2), "label_map": torch.zeros(1, 2, 2, 2)}
    assert AnswerLabeld(convention="brats2018")(sample) == sample


def test_values_are_those_of_the_metadata_in_every_convention() -> None:
    for convention, (ncr, ed, et) in {"brats2018": (1, 2, 4), "brats2023": (1, 2, 3), "msd": (2, 1, 3)}.items():
        label = torch.tensor([0, ncr, ed, et, 0, 0, 0, 0], dtype=torch.uint8).view(1, 2, 2, 2)
        sample = {
            "label_map": label,
            "pred": torch.rand(3, 2, 2, 2),
            "geometry": GEOMETRY,
            "request": {"device": "cpu"},
        }
        answer = AnswerLabeld(convention=convention)(sample)
        assert answer["pred"].flatten().tolist() == [0, 1, 2, 3, 0, 0, 0, 0]
        assert answer["pred"].shape == (1, 2, 2, 2)
        assert answer["device"] == "cpu"
        assert "request" not in answer
        assert np.array_equal(answer["image_meta_dict"]["original_affine"], GEOMETRY["source_affine"])
        assert answer["image_meta_dict"]["spatial_shape"] == (2, 2, 2)


def test_of_several_annotators_the_consensus_is_given() -> None:
    classes = torch.stack([torch.full((2, 2, 2), value) for value in (3, 1, 2)])
    answer = AnswerLabeld("pred")({"pred": classes, "geometry": GEOMETRY, "request": {}})
    assert answer["pred"].unique().tolist() == [3]
