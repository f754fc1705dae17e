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

"""Tests of masks on the grid of the brain box, for references with full supervision."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_rrr.data import BrainBoxCache, LoadBrainBoxd
from monai_rrr.errors import DataError
from monai_rrr.transforms import LabelToRegionsd, RandSlabd
from monai_rrr.utils.files import sha256

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS: the canonical box is mirrored twice


def write_case(folder: Path) -> dict[str, object]:
    image = np.zeros((20, 22, 16), np.int16)
    image[3:17, 4:18, 2:14] = np.random.default_rng(0).integers(50, 100, (14, 14, 12))
    label = np.zeros(image.shape, np.uint8)
    label[5:11, 6:12, 4:10] = 2
    label[6:9, 7:10, 5:8] = 4
    nib.save(nib.Nifti1Image(image, AFFINE), folder / "a_flair.nii.gz")
    nib.save(nib.Nifti1Image(label, AFFINE), folder / "a_seg.nii.gz")
    return {
        "case_id": "a",
        "modalities": {"flair": str(folder / "a_flair.nii.gz")},
        "label": str(folder / "a_seg.nii.gz"),
    }


def test_label_lies_where_the_file_has_it(tmp_path: Path):
    case = write_case(tmp_path)
    load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"), with_label=True)
    box = load(case)
    assert box["label"].shape == (1, *box["brain"].shape)
    assert box["label"].dtype == torch.uint8
    source = nib.load(case["label"])
    for value in (2, 4):
        found = np.argwhere(box["label"][0].numpy() == value)
        truth = np.argwhere(np.asarray(source.dataobj) == value)
        assert len(found) == len(truth)
        centers = [nib.affines.apply_affine(a, v).mean(0) for a, v in ((box["affine"], found), (AFFINE, truth))]
        np.testing.assert_allclose(*centers, atol=1e-6)


def test_slab_carries_the_masks(tmp_path: Path):
    box = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"), with_label=True)(write_case(tmp_path))
    slab = RandSlabd((24, 24, 16), 1.0)(LabelToRegionsd("label", "brats2018")(box))
    assert slab["label"].shape == (3, 24, 24, 16)
    assert slab["label"].sum((1, 2, 3)).tolist() == [216.0, 27.0, 27.0]
    assert "label" not in RandSlabd((24, 24, 16), 1.0)({k: v for k, v in box.items() if k != "label"})


def test_exception(tmp_path: Path):
    case = write_case(tmp_path)
    del case["label"]
    load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"), with_label=True)
    with pytest.raises(DataError, match=r"\[label-missing\] case a, field label: expected a voxel mask of this case"):
        load(case)


def test_masks_and_tags_of_some_cases_only(tmp_path: Path):
    case = write_case(tmp_path)
    bare = {key: value for key, value in case.items() if key != "label"}
    tags = {"a": {"WT": (4, 9), "TC": None, "ET": None}}
    cache = BrainBoxCache(tmp_path / "cache")
    load = LoadBrainBoxd(cache, tags, with_label=None, partial=True)
    assert "label" in load(case)
    assert "label" not in load(bare)
    assert "tags" in load(bare)
    assert "tags" not in LoadBrainBoxd(cache, {}, partial=True)(bare)
    with pytest.raises(DataError, match=r"\[tags-missing\] case a"):
        LoadBrainBoxd(cache, {})(bare)


def test_labels_that_only_some_cases_have(tmp_path: Path):
    load, case = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache"), with_label=None), write_case(tmp_path)
    assert load(case)["label"].any()
    del case["label"]
    assert "label" not in load(case)


def test_only_masks_that_were_verified_are_read(tmp_path: Path):
    """A mask counts as verified under the case that it belongs to, also where another case is given it."""
    case = write_case(tmp_path)
    digest = sha256(case["label"])
    shuffled = {**case, "label_of": "b"}
    for item, owner in ((case, "a"), (shuffled, "b")):
        assert LoadBrainBoxd(BrainBoxCache(tmp_path / "cache", hashes={owner: {"label": digest}}), with_label=True)(
            item
        )
        load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache", hashes={owner: {"label": "0" * 64}}), with_label=True)
        with pytest.raises(DataError, match=r"case a, field label"):
            load(item)
