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

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from monai_rrr.transforms.warp import RandomWarp, Warp

EXACT = RandomWarp(exact=1.0)
SIMILARITY = RandomWarp(exact=0.0)
LEVEL_TILT = RandomWarp(exact=0.0, tilt=15.0, shift=0.1)


def flip(*signs: float) -> Warp:
    count = len(signs)
    return Warp(torch.cat([torch.diag(torch.tensor(signs)), torch.zeros(count, 1)], 1)[None], (True,))


def blob(shape, center, sigma=1.5):
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")
    distance = sum((a - c) ** 2 for a, c in zip(axes, center, strict=True))
    return torch.exp(-distance / (2 * sigma**2))


def centroid(x):
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in x.shape), indexing="ij")
    return torch.stack([(a * x).sum() / x.sum() for a in axes])


@pytest.mark.parametrize("draw", [EXACT, SIMILARITY, LEVEL_TILT])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 8, 6, 5), (1, 2, 4, 8, 8, 4)])
def test_smoke_any_number_of_axes(draw, shape):
    x = torch.rand(shape)
    spatial = x if x.ndim == 4 else x.flatten(1, -4)
    warp = draw(spatial)
    assert warp(x).shape == x.shape
    torch.testing.assert_close(warp(x), warp(spatial).view_as(x), rtol=0, atol=0)


@pytest.mark.parametrize("signs", [(-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, -1.0), (-1.0, 1.0, -1.0)])
def test_flips_are_index_operations(signs):
    x = torch.rand(1, 2, 5, 6, 7, dtype=torch.float64)
    dims = [2 + axis for axis, sign in enumerate(signs) if sign < 0]
    assert torch.equal(flip(*signs)(x), x.flip(dims))


def test_exact_group_holds_all_turns_and_flips_and_agrees_with_interpolation():
    x = torch.rand(1, 1, 6, 6, 4)
    seen = set()
    for iteration in range(200):
        warp = EXACT(x, iteration=iteration)
        assert warp.exact == (True,)
        moved = warp(x)
        seen.add(tuple(moved.flatten().tolist()))
        if iteration < 20:
            torch.testing.assert_close(Warp(warp.theta, (False,))(x), moved, rtol=0, atol=1e-5)
    assert len(seen) == 16, "four turns, left-right flip and z-flip"


@pytest.mark.parametrize("iteration", range(6))
def test_exact_moves_image_and_label_without_any_error(iteration):
    image = torch.rand(3, 4, 8, 8, 6)
    label = (image[:, :1] > 0.7).to(torch.uint8)
    warp = EXACT(image, iteration=iteration)
    assert torch.equal(warp(label), (warp(image)[:, :1] > 0.7).to(torch.uint8))
    assert torch.equal(warp(label.bool()), warp(label).bool())
    assert torch.equal(warp.inverse()(warp(image)), image)
    assert warp.validity((8, 8, 6)).all()


def test_no_quarter_turns_where_the_plane_is_not_square():
    for iteration in range(30):
        assert EXACT(torch.zeros(1, 1, 6, 8, 4), iteration).theta[0, :, :3].abs().equal(torch.eye(3))


def test_rotation_on_a_non_cubic_grid_keeps_distances():
    shape = (60, 30, 4)
    points = torch.tensor([[29.5, 9.5, 1.5], [29.5, 19.5, 1.5]])
    angle = math.radians(45)
    a = torch.eye(3, dtype=torch.float64)
    a[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    n = torch.diag(torch.tensor(shape, dtype=torch.float64) / 2)

    def apart(linear):
        image = torch.stack([blob(shape, p) for p in points])[None]
        warp = Warp(torch.cat([linear, torch.zeros(3, 1)], 1).float()[None], (False,))
        first, second = warp(image)[0]
        return float((centroid(first) - centroid(second)).norm())

    assert apart(torch.linalg.inv(n) @ a @ n) == pytest.approx(10.0, abs=0.05)
    assert abs(apart(a) - 10.0) > 2


@pytest.mark.parametrize("iteration", range(8))
def test_drawn_similarities_keep_angles_and_scale_distances_alike(iteration):
    shape = (60, 30, 8)
    warp = replace(SIMILARITY, translation=0.0)(torch.zeros(1, 1, *shape), iteration)
    n = torch.diag(torch.tensor(shape).float() / 2)
    voxel = n @ warp.theta[0, :, :3] @ torch.linalg.inv(n)
    gram = voxel[:2, :2].T @ voxel[:2, :2]
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(2), atol=1e-5, rtol=1e-5)
    assert 1 / 1.2 - 1e-5 <= float(gram[0, 0].sqrt()) <= 1 / 0.8 + 1e-5
    assert voxel[2, :2].abs().max() == 0
    assert abs(float(voxel[2, 2])) == 1


@pytest.mark.parametrize("draw", [SIMILARITY, LEVEL_TILT])
def test_inverse_undoes_the_warp_inside_the_field_of_view(draw):
    shape = (24, 20, 16)
    image = torch.stack([blob(shape, (11.5 + d, 9.5, 7.5), sigma=3.0) for d in (-2, 0, 3)])[:, None]
    warp = draw(image, iteration=5)
    back = warp.inverse()(warp(image))
    inside = warp.inverse()(warp.validity(shape).float()) > 0.999
    assert inside.float().mean() > 0.2
    assert (back - image)[inside].abs().max() < 0.08
    assert (warp(image) - image).abs().max() > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_one_draw_serves_all_modalities_and_resolutions(seed):
    image = torch.rand(2, 1, 8, 8, 4).expand(-1, 4, -1, -1, -1)
    exact = RandomWarp(seed=seed, exact=1.0)(image)
    moved = exact(image)
    assert all(torch.equal(moved[:, 0], moved[:, m]) for m in range(4))
    pooled = F.avg_pool3d(image, 2)
    torch.testing.assert_close(F.avg_pool3d(moved, 2), exact(pooled), rtol=0, atol=1e-6)

    smooth = torch.stack([blob((32, 32, 8), (17.0, 13.0, 3.5), sigma=5.0)] * 2)[:, None]
    assert smooth.std() > 0.1
    warp = RandomWarp(seed=seed, exact=0.0)(smooth)
    torch.testing.assert_close(
        F.avg_pool3d(warp(smooth), (2, 2, 1)), warp(F.avg_pool3d(smooth, (2, 2, 1))), rtol=0, atol=0.04
    )


def test_gradient_reaches_the_input():
    x = torch.rand(2, 1, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    turn = torch.eye(3, 4)[None].neg()
    warp = Warp(torch.cat([turn, SIMILARITY(x).theta[:1]]), (True, False))
    assert torch.autograd.gradcheck(warp, (x,))


def test_slices_move_with_the_image():
    tags = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    assert flip(1.0, 1.0, 1.0).slices(tags).tolist() == tags.tolist()
    assert flip(-1.0, 1.0, 1.0).slices(tags).tolist() == tags.tolist()
    assert flip(1.0, 1.0, -1.0).slices(tags).tolist() == [[[1.0, 1.0, 0.0, 0.0]]]
    with_z = torch.zeros(1, 1, 8, 8, 4)
    with_z[..., 2:] = 1
    for iteration in range(30):
        for draw in (EXACT, SIMILARITY):
            warp = draw(with_z, iteration)
            assert torch.equal(warp.slices(tags)[0, 0], (warp(with_z)[0, 0].amax((0, 1)) > 0.5).float())


def test_slices_are_unknown_once_they_mix():
    tags = torch.ones(2, 3, 4)
    image = torch.zeros(2, 1, 8, 8, 4)
    assert replace(SIMILARITY, tilt=15.0)(image).slices(tags).isnan().all()
    assert replace(SIMILARITY, shift=0.2)(image).slices(tags).isnan().all()


def test_draw_is_a_function_of_seed_iteration_and_rank():
    image = torch.zeros(3, 1, 8, 8, 4)
    state = torch.get_rng_state()
    first = SIMILARITY(image, iteration=7, rank=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.theta, SIMILARITY(image, iteration=7, rank=1).theta)
    others = [
        SIMILARITY(image, iteration=8, rank=1),
        SIMILARITY(image, iteration=7, rank=2),
        replace(SIMILARITY, seed=1)(image, iteration=7, rank=1),
    ]
    assert all(not torch.equal(first.theta, other.theta) for other in others)
    assert not torch.equal(first.theta[0], first.theta[1])


def test_share_of_exact_samples():
    image = torch.zeros(400, 1, 2, 2, 2)
    assert sum(RandomWarp(exact=0.25)(image).exact) / 400 == pytest.approx(0.25, abs=0.08)


def test_half_precision_is_moved_by_precise_coordinates():
    image = blob((64, 64, 4), (20.0, 40.0, 1.5), sigma=4.0)[None, None]
    warp = SIMILARITY(image, 2)
    moved = warp(image.bfloat16())
    assert moved.dtype == torch.bfloat16
    torch.testing.assert_close(moved.float(), warp(image), atol=0.01, rtol=0)


def test_exception():
    image = torch.zeros(1, 1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"theta must be B x 2 x 3 or B x 3 x 4, got \(1, 3, 3\)"):
        Warp(torch.zeros(1, 3, 3), (False,))
    with pytest.raises(ValueError, match="exact needs 1 flags, got 2"):
        Warp(torch.zeros(1, 3, 4), (False, False))
    with pytest.raises(ValueError, match="signed permutation"):
        Warp(SIMILARITY(image).theta, (True,))
    with pytest.raises(ValueError, match="expected 1 samples with 3 spatial axes"):
        SIMILARITY(image)(torch.zeros(2, 1, 4, 4, 4))
    with pytest.raises(TypeError, match=r"floating point values, got torch\.uint8"):
        SIMILARITY(image)(image.to(torch.uint8))
    turn = Warp(torch.tensor([[[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]]), (True,))
    with pytest.raises(ValueError, match="a quarter turn needs equal axes"):
        turn(torch.zeros(1, 1, 4, 6, 2))
    with pytest.raises(ValueError, match=r"expected B C H W \[D\]"):
        SIMILARITY(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"exact must be a probability, got 1\.5"):
        RandomWarp(exact=1.5)
    with pytest.raises(ValueError, match="scale must be an increasing range"):
        RandomWarp(scale=(1.2, 0.8))
    with pytest.raises(ValueError, match="must not be negative"):
        RandomWarp(tilt=-1.0)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_slices_are_resampled_as_the_volume_would_be(mode):
    x = torch.rand(4, 2, 12, 10, 7, dtype=torch.float64)
    warp = SIMILARITY(x, iteration=2)
    assert (warp.theta[:, 2, 2] < 0).any()
    grid = F.affine_grid(_reversed(warp.theta).double(), list(x.shape), align_corners=False)
    expected = F.grid_sample(x, grid, mode=mode, align_corners=False)
    inside = warp.validity(x.shape[2:]).expand_as(x)
    torch.testing.assert_close(warp(x, mode)[inside], expected[inside], rtol=0, atol=1e-5)


def test_a_shear_along_the_slices_is_resampled_in_space():
    x = torch.rand(1, 1, 8, 8, 6, dtype=torch.float64)
    theta = torch.eye(3, 4)[None]
    theta[0, 0, 2] = 0.3
    grid = F.affine_grid(_reversed(theta).double(), list(x.shape), align_corners=False)
    expected = F.grid_sample(x, grid, align_corners=False)
    torch.testing.assert_close(Warp(theta, (False,))(x), expected)


def _reversed(theta):
    flipped = theta.flip(1)
    return torch.cat([flipped[..., :3].flip(2), flipped[..., 3:]], 2)
