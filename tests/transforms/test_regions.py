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

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_rrr.errors import ConfigError, DataError
from monai_rrr.transforms.regions import LabelToRegionsd, to_labels, to_regions
from monai_rrr.utils.conventions import CONVENTIONS


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("shape", [(7, 9), (5, 6, 7), (1, 4, 4)])
def test_l4_round_trip_and_nesting(name: str, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    label = generator.choice(sorted(CONVENTIONS[name].values), shape).astype(np.uint8)
    regions = to_regions(label, name)
    assert regions.shape == (3, *shape)
    assert regions.dtype == np.uint8
    whole, core, enhancing = regions.astype(bool)
    assert not (core & ~whole).any()
    assert not (enhancing & ~core).any()
    np.testing.assert_array_equal(to_labels(regions, name), label)
    tensor = to_regions(torch.as_tensor(label), name)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), regions)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("brats2018", [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]),
        ("brats2023", [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]),
        ("msd", [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]),
    ],
)
def test_value(name: str, expected: list[list[int]]) -> None:
    values = sorted(CONVENTIONS[name].values)
    assert to_regions(torch.tensor(values), name).tolist() == expected


def test_regions_that_are_not_nested_are_read_from_the_inside() -> None:
    regions = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert to_labels(regions, "brats2018").tolist() == [0, 2, 1, 4]


def test_zero() -> None:
    regions = to_regions(torch.zeros(3, 4, 5), "msd")
    assert not regions.any()
    assert not to_labels(regions, "msd").any()


def test_floats_close_to_integers_are_rounded() -> None:
    assert to_regions(torch.tensor([0.0004, 3.9996]), "brats2018").tolist() == [[0, 1], [0, 1], [0, 1]]


@pytest.mark.parametrize("value", [0.5, 2.7, float("nan")])
def test_l3_fractional_values(value: float) -> None:
    with pytest.raises(DataError, match="expected integer label values, got 1 fractional or non-finite voxels"):
        to_regions(torch.tensor([0.0, value]), "brats2018")


def test_exception() -> None:
    with pytest.raises(DataError, match=r"got \[0, 3\]; not declared: 3"):
        to_regions(torch.tensor([0, 3]), "brats2018")
    with pytest.raises(ConfigError, match="expected a label convention"):
        to_regions(torch.tensor([0, 3]), "brats")
    with pytest.raises(ValueError, match=r"expected regions 3HW\[D\] \(WT, TC, ET\), got shape \(2, 4, 4\)"):
        to_labels(torch.zeros(2, 4, 4), "msd")


def test_dictionary_transform() -> None:
    label = torch.randint(0, 4, (1, 4, 5, 6))
    transform = LabelToRegionsd("label", "msd")
    data = {"label": MetaTensor(label, affine=2 * torch.eye(4)), "case_id": "a"}
    out = transform(data)
    assert torch.equal(out["label"].as_tensor(), to_regions(label[0], "msd"))
    assert torch.equal(out["label"].affine, data["label"].affine)
    assert data["label"].shape == (1, 4, 5, 6)
    assert torch.equal(transform({"label": label[0]})["label"], to_regions(label[0], "msd"))
    with pytest.raises(KeyError, match="label"):
        transform({})
    assert LabelToRegionsd("label", "msd", allow_missing_keys=True)({}) == {}
