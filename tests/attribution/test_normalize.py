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

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from monai_rrr.attribution import normalize_l2, normalize_max, normalize_minmax, resize_heatmap

NORMALIZERS = [normalize_max, normalize_minmax, normalize_l2]


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 4, 5), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_each_sample_and_class_on_its_own(normalize: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    heatmap = torch.randn(shape, dtype=torch.float64)
    whole = normalize(heatmap)
    assert whole.shape == shape
    for sample in range(shape[0]):
        for channel in range(shape[1]):
            part = (slice(sample, sample + 1), slice(channel, channel + 1))
            torch.testing.assert_close(whole[part], normalize(1e-4 * heatmap[part]))


def test_values() -> None:
    heatmap = torch.tensor([-2.0, 0.0, 2.0, 6.0]).reshape(1, 1, 2, 2)
    assert normalize_max(heatmap).flatten().tolist() == pytest.approx([0, 0, 1 / 3, 1])
    assert normalize_minmax(heatmap).flatten().tolist() == pytest.approx([0, 0.25, 0.5, 1])
    assert normalize_l2(heatmap).square().sum().item() == pytest.approx(1)
    assert normalize_l2(heatmap)[0, 0, 0, 0] < 0


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_zero_map_is_zero_and_has_a_finite_gradient(normalize: Callable[[Tensor], Tensor]) -> None:
    heatmap = torch.zeros(2, 1, 3, 3, 3, requires_grad=True)
    result = normalize(heatmap)
    assert result.abs().sum() == 0
    result.sum().backward()
    assert heatmap.grad is not None
    assert heatmap.grad.isfinite().all()


def test_flat_and_negative_maps() -> None:
    flat = torch.full((1, 1, 3, 3), 7.0)
    assert normalize_minmax(flat).abs().sum() == 0
    assert torch.equal(normalize_max(flat), torch.ones_like(flat))
    assert normalize_max(-flat).abs().sum() == 0
    assert normalize_l2(-flat).flatten().tolist() == pytest.approx([-1 / 3] * 9)


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_small_maps_are_not_clamped(normalize: Callable[[Tensor], Tensor]) -> None:
    heatmap = torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(normalize(heatmap * 1e-9), normalize(heatmap), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_gradcheck(normalize: Callable[[Tensor], Tensor]) -> None:
    heatmap = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize, heatmap)


@pytest.mark.parametrize("normalize", [*NORMALIZERS, lambda heatmap: resize_heatmap(heatmap, (4, 4))])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(normalize: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    assert normalize(torch.rand(1, 1, 2, 2).to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("normalize", NORMALIZERS)
@pytest.mark.parametrize("shape", [(3, 3), (1, 2, 3, 4, 5, 6)])
def test_wrong_dimensions(normalize: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a heatmap of shape B T h \[w d\], got \(" + str(shape[0])):
        normalize(torch.zeros(shape))


@pytest.mark.parametrize("size", [(8,), (8, 6), (8, 6, 4)])
def test_resize_keeps_place_and_mean(size: tuple[int, ...]) -> None:
    coarse = tuple(n // 2 for n in size)
    heatmap = torch.rand(2, 3, *coarse, dtype=torch.float64)
    fine = resize_heatmap(heatmap, size)
    assert fine.shape == (2, 3, *size)
    # with align_corners=False a ramp along an axis stays a ramp at voxel centers
    ramp = (torch.arange(coarse[0], dtype=torch.float64) + 0.5).reshape(1, 1, -1, *(1,) * (len(size) - 1))
    found = resize_heatmap(ramp.expand(1, 1, *coarse).clone(), size)[0, 0].flatten(1)[:, 0] if len(size) > 1 else None
    if found is not None:
        torch.testing.assert_close(found[1:-1], (torch.arange(size[0], dtype=torch.float64) + 0.5)[1:-1] / 2)


def test_resize_to_the_same_size_is_the_same() -> None:
    heatmap = torch.rand(1, 1, 3, 4, 5)
    assert resize_heatmap(heatmap, [3, 4, 5]) is heatmap


def test_resize_with_wrong_number_of_sizes() -> None:
    with pytest.raises(ValueError, match=r"expected 3 spatial sizes for heatmap \(1, 1, 2, 2, 2\), got \(4, 4\)"):
        resize_heatmap(torch.zeros(1, 1, 2, 2, 2), (4, 4))


def test_resize_gradcheck() -> None:
    heatmap = torch.randn(1, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: resize_heatmap(h, (4, 5, 3)), heatmap)
