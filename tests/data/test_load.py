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

import nibabel as nib
import numpy as np
import pytest
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import Compose
from monai.utils import set_determinism

from monai_rrr.data import BrainBoxCache, LoadBrainBoxd
from monai_rrr.errors import DataError
from monai_rrr.transforms import RandSlabd

TAGS = {name: {"WT": (3, 6), "TC": (4, 4), "ET": None} for name in "ab"}


@pytest.fixture
def cases(tmp_path):
    cases = []
    for i, name in enumerate("ab"):
        array = np.random.default_rng(i).integers(1, 500, (8, 8, 9)).astype(np.int16)
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        cases.append({"case_id": name, "modalities": {"t1": str(path)}, "label": str(tmp_path / "deleted.nii.gz")})
    return cases


@pytest.fixture
def transform(tmp_path):
    load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"), TAGS)
    return Compose([load, RandSlabd((8, 8, 4), spacing=1.0, rotate=20, flip_prob=0.5)])


def test_fields(tmp_path, cases):
    data = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"), TAGS)(cases[0])
    assert data["image"].shape == (4, 8, 8, 9)
    np.testing.assert_array_equal(data["tags"], [[3, 6], [4, 4], [np.nan, np.nan]])
    assert data["source_shape"].tolist() == [8, 8, 9]
    assert data["tag_grid"].tolist() == [1.0, 0.0]


def test_without_tags(tmp_path, cases):
    assert "tags" not in LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"))(cases[0])


def test_tags_of_the_case_are_missing(tmp_path, cases):
    load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"), {"b": TAGS["b"]})
    with pytest.raises(DataError, match=r"tags-missing.*case a, field tags: expected slice tags of this case"):
        load(cases[0])


@pytest.mark.parametrize("kind", [Dataset, CacheDataset])
def test_batches(cases, transform, kind):
    options = {"progress": False} if kind is CacheDataset else {}
    (batch,) = DataLoader(kind(cases, transform, **options), batch_size=2)
    assert batch["image"].shape == (2, 4, 8, 8, 4)
    assert batch["brain"].shape == (2, 1, 8, 8, 4)
    assert batch["present"].tolist() == [[True, False, False, False]] * 2
    assert batch["slice_label"].shape == (2, 3, 4)
    assert batch["class_label"].shape == (2, 3)
    assert batch["case_id"] == ["a", "b"]


@pytest.mark.slow
def test_workers_draw_reproducibly_and_differently(cases, transform):
    def draw(seed):
        set_determinism(seed)
        loader = DataLoader(Dataset(cases[:1] * 2, transform), num_workers=2, multiprocessing_context="spawn")
        images = [batch["image"] for batch in loader]
        set_determinism(None)
        return images

    first, again = draw(0), draw(0)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (first[0] == first[1]).all(), "the two workers must not draw the same"
