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

from monai_rrr.transforms import RandSlabd

SHAPE = (12, 16, 20)
AUGMENT = {"rotate": 20.0, "scale": (0.8, 1.2), "translate": 3.0, "flip_prob": 0.5}


def make_box(shape=SHAPE, spacing=(1.0, 1.0, 1.0), tag_grid=(1.0, 5.0), tags=((9, 12), (10, 10), (np.nan, np.nan))):
    brain = np.zeros(shape, dtype=bool)
    brain[1:-1, 1:-1, 1:-1] = True
    # Each slice holds its own index.
    image = np.broadcast_to(np.arange(shape[2]), (4, *shape)) * brain
    return {
        "case_id": "a",
        "image": image.astype(np.int16),
        "brain": brain,
        "present": np.array([True, True, False, True]),
        "mean": np.zeros(4, np.float32),
        "std": np.full(4, 2, np.float32),
        "affine": np.diag([*spacing, 1.0]),
        "tag_grid": np.array(tag_grid),
        "tags": np.array(tags, dtype=np.float64),
    }


def draw(transform, box, seed=0):
    return transform.set_random_state(seed)(box)


@pytest.mark.parametrize("options", [{}, AUGMENT, {**AUGMENT, "tilt": 15.0}])
def test_shapes_and_kinds(options):
    out = draw(RandSlabd((16, 20, 6), 1.0, **options), make_box())
    assert set(out) == {"case_id", "image", "brain", "present", "class_label", "slice_label"}
    assert out["case_id"] == "a"
    assert (out["image"].shape, out["image"].dtype) == ((4, 16, 20, 6), torch.float32)
    assert (out["brain"].shape, out["brain"].dtype) == ((1, 16, 20, 6), torch.bool)
    assert (out["slice_label"].shape, out["slice_label"].dtype) == ((3, 6), torch.float32)
    assert (out["class_label"].shape, out["class_label"].dtype) == ((3,), torch.float32)
    assert out["present"].tolist() == [True, True, False, True]
    assert not out["image"][2].any()
    assert not out["image"][:, ~out["brain"][0]].any()


@pytest.mark.parametrize("options", [{}, AUGMENT])
def test_slice_labels_belong_to_the_slices(options):
    transform = RandSlabd((12, 16, 6), 1.0, **options)
    starts = set()
    for seed in range(80):
        out = draw(transform, make_box(), seed)
        index = out["image"][0].amax(dim=(0, 1)) * 2
        inside = index > 0
        slices = index + 5
        for row, (first, last) in zip(out["slice_label"], ((9, 12), (10, 10)), strict=False):
            expected = (slices > first - 0.5) & (slices < last + 0.5)
            assert torch.equal(row[inside], expected[inside].float())
        assert not out["slice_label"][2].any()
        assert torch.equal(out["class_label"], out["slice_label"].amax(dim=1))
        starts.add(int(index[1]) - 1)
    assert starts == set(range(15)), "each start inside the box is drawn"


@pytest.mark.parametrize(("size", "expected"), [(6, [3.5, 6, 3.5]), (5, [3, 5, 3])])
def test_center_is_uniform(size, expected):
    transform = RandSlabd((1, 1, size), 1.0).set_random_state(0)
    box = make_box(shape=(3, 3, 20), tag_grid=(1.0, 0.0), tags=[(0, 0), (10, 10), (19, 19)])
    counts = sum(transform(box)["class_label"].numpy() for _ in range(400))
    # The first slice is in every slab whose center is within half a slab of it, slice 10 in twice as many.
    np.testing.assert_allclose(counts / 400, np.array(expected) / 20, atol=0.06)


def test_slab_larger_than_the_box_is_padded():
    out = draw(RandSlabd((16, 16, 24), 1.0), make_box())
    assert out["brain"][0].any(dim=1).any(dim=0).tolist() == [False] * 3 + [True] * 18 + [False] * 3
    assert out["slice_label"][0].nonzero().flatten().tolist() == [6, 7, 8, 9]


def test_pooled_slices_are_tagged_when_any_of_their_slices_is():
    # Box slice z holds the slices 3 z to 3 z + 2 of the case.
    box = make_box(spacing=(1, 1, 3), tag_grid=(3.0, 1.0), tags=[(6, 12), (8, 8), (11, 11)])
    out = draw(RandSlabd((12, 16, 20), (1.0, 1.0, 3.0)), box)
    assert [row.nonzero().flatten().tolist() for row in out["slice_label"]] == [[2, 3, 4], [2], [3]]


def test_finer_slab_than_the_box():
    box = make_box(spacing=(1, 1, 5), tag_grid=(1.0, 0.0), tags=[(2, 2), (2, 2), (np.nan, np.nan)])
    out = draw(RandSlabd((12, 16, 60), (1.0, 1.0, 2.0)), box)
    # 2 mm slices about a tagged slice of 5 mm: 5 / 2 of them, neighbors with at least half a mm included.
    assert 2 <= out["slice_label"][0].sum() <= 4


def test_mirror():
    box = make_box()
    box["image"] = np.random.default_rng(0).integers(1, 20, box["image"].shape).astype(np.int16) * box["brain"]
    for seed in range(3):
        plain = draw(RandSlabd((14, 15, 6), 1.0), box, seed)
        mirrored = draw(RandSlabd((14, 15, 6), 1.0, flip_prob=1.0), box, seed)
        assert torch.equal(plain["image"].flip(1), mirrored["image"])
        assert torch.equal(plain["brain"].flip(1), mirrored["brain"])
        assert torch.equal(plain["slice_label"], mirrored["slice_label"])


def test_magnification():
    plain = draw(RandSlabd((20, 24, 6), 1.0), make_box())["brain"].sum()
    large = draw(RandSlabd((20, 24, 6), 1.0, scale=(1.4, 1.4)), make_box())["brain"].sum()
    assert float(large / plain) == pytest.approx(1.96, rel=0.1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.6, 2.5)])
def test_distances_in_mm_are_kept_on_grids_that_are_not_cubes(spacing):
    shape = (60, 30, 8)
    box = make_box(shape=shape, spacing=spacing, tags=[(np.nan, np.nan)] * 3)
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"))
    points = np.array([(22.0, 20.0), (34.0, 26.0)])
    values = [1000 * np.exp(-((grid[:2] - p[:, None, None, None]) ** 2).sum(axis=0) / 8) + 1 for p in points]
    box["image"][:2] = np.stack(values).astype(np.int16)
    box["brain"][:] = True
    box["std"][:] = 1000
    moved = 0.0
    for seed in range(5):
        out = draw(RandSlabd((60, 40, 4), spacing, rotate=45, translate=2.0, flip_prob=0.5), box, seed)
        mesh = torch.meshgrid(torch.arange(60.0), torch.arange(40.0), indexing="ij")
        centers = []
        for channel in out["image"][:2, ..., 1]:
            weight = torch.where(channel > 0.05, channel, 0.0)
            centers.append([float((m * weight).sum() / weight.sum()) * s for m, s in zip(mesh, spacing, strict=False)])
        delta = np.subtract(*centers)
        assert np.linalg.norm(delta) == pytest.approx(np.linalg.norm(points[0] - points[1]), abs=0.35)
        moved = max(moved, abs(float(delta[0]) + 12.0))
    assert moved > 1.0, "there was a rotation"


def test_prob_zero_leaves_out_the_affine():
    plain = draw(RandSlabd((12, 16, 6), 1.0), make_box())
    never = draw(RandSlabd((12, 16, 6), 1.0, rotate=30, scale=(0.5, 2), translate=5, tilt=3, prob=0.0), make_box())
    assert torch.equal(plain["image"], never["image"])


def test_random_state():
    transform = RandSlabd((12, 16, 6), 1.0, **AUGMENT)
    first, second = (draw(transform, make_box(), seed=3)["image"] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, transform(make_box())["image"])


def test_position_does_not_depend_on_options_or_tags():
    transforms = [RandSlabd((12, 16, 6), 1.0, **options) for options in ({}, {"rotate": 9}, {"tilt": 5}, AUGMENT)]
    labels = [draw(t, make_box(), 7)["class_label"] for t in transforms]
    assert all(torch.equal(label, labels[0]) for label in labels)
    other = draw(transforms[0], make_box(tags=[(np.nan, np.nan)] * 3), 7)
    assert torch.equal(other["image"], draw(transforms[0], make_box(), 7)["image"])


def test_tilt_leaves_only_the_label_of_the_slab():
    out = draw(RandSlabd((12, 16, 20), 1.0, tilt=10), make_box())
    assert out["slice_label"].isnan().all()
    assert out["class_label"].tolist() == [1.0, 1.0, 0.0]


def test_without_tags_labels_are_unknown():
    box = make_box()
    del box["tags"]
    out = draw(RandSlabd((12, 16, 6), 1.0), box)
    assert out["slice_label"].isnan().all()
    assert out["class_label"].isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi_size": (3, 3)}, r"roi_size must be three positive whole numbers \(X, Y, D\), got \(3, 3\)"),
        ({"roi_size": (3, 3, 0)}, "roi_size must be three positive"),
        ({"roi_size": (3, 3, 2.5)}, "roi_size must be three positive"),
        ({"spacing": 0.0}, r"spacing must be positive \(mm\), got 0.0"),
        ({"scale": (1.2, 0.8)}, r"scale must be .* got \(1.2, 0.8\)"),
        ({"scale": (0.0, 1.0)}, "scale must be"),
        ({"rotate": -1}, "must not be negative .* got -1"),
        ({"flip_prob": 1.5}, "flip_prob must be a probability, got .* 1.5"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        RandSlabd(**{"roi_size": (4, 4, 4), "spacing": 1.0, **options})


def test_slab_that_would_skip_voxels():
    message = r"slab spacing \(2.0, 2.0, 2.0\) mm must be less than twice .* \(1.0, 1.0, 1.0\) mm; build the cache"
    with pytest.raises(ValueError, match=message):
        RandSlabd((4, 4, 4), spacing=2.0)(make_box())


def test_bad_tags():
    with pytest.raises(ValueError, match=r"tags must have the shape \(3, 2\), got \(2, 2\)"):
        RandSlabd((4, 4, 4), spacing=1.0)(make_box(tags=[(1, 2), (1, 2)]))


@pytest.mark.parametrize("options", [{}, AUGMENT])
def test_masks_of_annotators_and_marks_move_with_the_image(options):
    """Both are drawn in the slices where the image has their number, and are found there."""
    box = make_box()
    drawn = torch.full((3, *SHAPE), -1, dtype=torch.int8)
    drawn[:2] = 0
    drawn[0, :, :, 6:] = 2
    drawn[1, :, :, 3:6] = -1
    box["annotations"], box["annotated"] = drawn, torch.tensor([True, True, False])
    box["annotator_weight"] = torch.tensor([1.0, 2.0, 3.0])
    box["evidence"] = (torch.arange(SHAPE[2]) < 6).to(torch.uint8).expand(1, *SHAPE)
    for seed in range(3):
        out = draw(RandSlabd((12, 16, 10), 1.0, **options), box, seed)
        inside = out["brain"][0]
        number = (out["image"][0] * 2).amax((0, 1)).round().expand(12, 16, -1)
        assert len(number[0, 0].unique()) == 10, "each slice of the slab is another one of the box"
        assert (out["annotations"].shape, out["annotations"].dtype) == ((3, 12, 16, 10), torch.int8)
        expected = torch.stack([torch.where(number >= 6, 2, 0), torch.where((number >= 3) & (number < 6), -1, 0)])
        assert torch.equal(out["annotations"][:2, inside].long(), expected[:, inside])
        assert (out["annotations"][2] == -1).all()
        assert (out["annotations"][:, ~inside] == -1).all()
        assert out["evidence"].shape == (1, 12, 16, 10)
        assert torch.equal(out["evidence"][0][inside] > 0.5, (number < 6)[inside])
        assert out["annotated"].tolist() == [True, True, False]
        assert out["annotator_weight"].tolist() == [1.0, 2.0, 3.0]


def test_paths_of_masks_are_left_alone():
    box = {**make_box(), "annotations": {"a1": "x.nii.gz"}, "evidence": {"allowed": "y.nii.gz"}}
    assert not {"annotations", "evidence"} & set(draw(RandSlabd((8, 8, 4), 1.0), box))
