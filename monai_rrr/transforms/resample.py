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

"""One affine from a brain box into a slab: int16 in, standardized float32 out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

__all__ = ["resample_box", "resample_classes", "resample_label"]

_EPS = 1e-6


def resample_box(
    box: Mapping[Any, Any], matrix: NDArray[np.float64], size: Sequence[int], clip: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Sample a brain box on the grid of a slab, linearly, and standardize each modality.

    Equal to standardizing the nonzero voxels with the box's mean and standard deviation, leaving 0 outside, and
    resampling afterwards; but only the voxels that are needed become float, and all modalities share one grid.
    Whole-voxel shifts and mirrorings are slices of the array; transforms that keep axial slices apart are sampled in
    two dimensions.

    Args:
        box: ``image``, ``brain``, ``present``, ``mean`` and ``std`` of a brain box.
        matrix: 4x4, slab voxel -> box voxel.
        size: ``X, Y, D`` of the slab.
        clip: largest absolute value of the result, in standard deviations.

    Returns:
        image, float32, ``MXYD``, 0 outside the brain and for absent modalities; brain, bool, ``1XYD``.
    """
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"size must be three positive numbers, got {tuple(size)}")
    linear = np.asarray(matrix, dtype=np.float64)[:3, :3]
    offset = np.asarray(matrix, dtype=np.float64)[:3, 3]
    if _is_whole(np.diag(linear), offset) and np.allclose(np.abs(linear), np.eye(3), atol=_EPS):
        sampled = _slice(box, np.sign(np.diag(linear)), offset, size)
    elif np.allclose(linear[2, :2], 0, atol=_EPS) and np.allclose(linear[:2, 2], 0, atol=_EPS):
        sampled = _sample_slices(box, linear, offset, size)
    else:
        sampled = _sample_volume(box, linear, offset, size)
    image, weight = sampled[:-1], sampled[-1]
    mean = torch.as_tensor(np.asarray(box["mean"], dtype=np.float32))
    std = torch.as_tensor(np.asarray(box["std"], dtype=np.float32))
    present = torch.as_tensor(np.asarray(box["present"], dtype=np.float32))
    brain = weight > 0.5
    for m, channel in enumerate(image):
        # The mean is removed in proportion to the share of brain, so that edges are those of a standardized image.
        channel.addcmul_(weight, mean[m], value=-1).mul_(present[m] / std[m]).clamp_(-clip, clip).mul_(brain)
    return image.permute(0, 2, 3, 1).contiguous(), brain.permute(1, 2, 0)[None].contiguous()


def resample_label(
    box: Mapping[Any, Any], matrix: NDArray[np.float64], size: Sequence[int], key: str = "label"
) -> Tensor:
    """Sample masks of a brain box on the grid of a slab, linearly.

    Args:
        box: masks (``KXYZ``, 0 or 1) and ``brain``.
        matrix: 4x4, slab voxel -> box voxel.
        size: ``X, Y, D`` of the slab.
        key: of the masks.

    Returns:
        float32 in [0, 1], ``KXYD``, 0 outside the brain.
    """
    return _resample_masks(np.asarray(box[key]), box, matrix, size)


def resample_classes(
    box: Mapping[Any, Any], matrix: NDArray[np.float64], size: Sequence[int], key: str, num_classes: int = 4
) -> Tensor:
    """Sample class maps of a brain box on the grid of a slab: the class with the largest share of a voxel.

    Args:
        box: class maps (``RXYZ``, 0 to ``num_classes - 1``, negative where not known) and ``brain``.
        matrix: 4x4, slab voxel -> box voxel.
        size: ``X, Y, D`` of the slab.
        key: of the class maps.
        num_classes: ``C``.

    Returns:
        int8, ``RXYD``; -1 where less than half of a voxel is known, and outside the brain.
    """
    classes = np.asarray(box[key])
    share = _resample_masks(
        np.concatenate([classes == index for index in range(num_classes)]).astype(np.uint8), box, matrix, size
    ).unflatten(0, (num_classes, len(classes)))
    return torch.where(share.sum(0) >= 0.5, share.argmax(0), -1).to(torch.int8)


def _resample_masks(
    label: NDArray[Any], box: Mapping[Any, Any], matrix: NDArray[np.float64], size: Sequence[int]
) -> Tensor:
    count = len(label)
    masks = {
        "image": label,
        "brain": box["brain"],
        "present": np.ones(count),
        "mean": np.zeros(count),
        "std": np.ones(count),
    }
    return resample_box(masks, matrix, size, clip=1.0)[0]


def _is_whole(*values: NDArray[np.float64]) -> bool:
    return all(np.allclose(v, np.round(v), rtol=0, atol=_EPS) for v in values)


def _crop(box: Mapping[Any, Any], low: NDArray[np.int_], high: NDArray[np.int_]) -> NDArray[np.float32]:
    """Return modalities and brain of ``low <= voxel < high`` as float32, ``CZXY``, 0 outside the box."""
    image, brain = box["image"], box["brain"]
    shape = np.asarray(brain.shape)
    out = np.zeros((len(image) + 1, high[2] - low[2], high[0] - low[0], high[1] - low[1]), dtype=np.float32)
    first, last = np.clip(low, 0, shape), np.clip(high, 0, shape)
    if (last > first).all():
        x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        into_x, into_y, into_z = (slice(int(a), int(b)) for a, b in zip(first - low, last - low, strict=True))
        inner = out[:, into_z, into_x, into_y]
        inner[:-1] = np.asarray(image)[:, x, y, z].transpose(0, 3, 1, 2)
        inner[-1] = np.asarray(brain)[x, y, z].transpose(2, 0, 1)
    return out


def _slice(
    box: Mapping[Any, Any], sign: NDArray[np.float64], offset: NDArray[np.float64], size: Sequence[int]
) -> Tensor:
    start = np.round(offset).astype(int)
    low = np.where(sign > 0, start, start - np.asarray(size) + 1)
    x, y, z = (slice(None, None, int(s)) for s in sign)
    return torch.from_numpy(np.ascontiguousarray(_crop(box, low, low + np.asarray(size))[:, z, x, y]))


def _range(
    linear: NDArray[np.float64], offset: NDArray[np.float64], size: Sequence[int], shape: Sequence[int]
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Voxels of the box between which a slab is sampled; at least one, so that there is something to sample."""
    last = np.asarray(size, dtype=np.float64) - 1
    low = np.floor(offset + np.minimum(linear * last, 0).sum(axis=1)).astype(int)
    high = np.floor(offset + np.maximum(linear * last, 0).sum(axis=1)).astype(int) + 2
    low = np.clip(low, 0, np.asarray(shape) - 1)
    return low, np.clip(high, low + 1, np.asarray(shape))


def _sample_slices(
    box: Mapping[Any, Any], linear: NDArray[np.float64], offset: NDArray[np.float64], size: Sequence[int]
) -> Tensor:
    low, high = _range(linear, offset, size, box["brain"].shape)
    z = linear[2, 2] * np.arange(size[2]) + offset[2]
    whole = _is_whole(z)
    below = np.round(z).astype(int) if whole else np.floor(z).astype(int)
    low[2], high[2] = below.min(), below.max() + (1 if whole else 2)
    source = torch.from_numpy(_crop(box, low, high))
    index = torch.from_numpy(below - low[2])
    if not whole:
        fraction = torch.from_numpy((z - below).astype(np.float32))[:, None, None]
        source = torch.lerp(source[:, index], source[:, index + 1], fraction)
    elif not np.array_equal(below, np.arange(low[2], high[2])):
        source = source[:, index]
    grid = _grid(linear[:2, :2], offset[:2] - low[:2], size[:2], (high - low)[:2])
    flat = source.reshape(1, -1, *source.shape[2:])
    sampled = grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.reshape(len(source), size[2], size[0], size[1])


def _sample_volume(
    box: Mapping[Any, Any], linear: NDArray[np.float64], offset: NDArray[np.float64], size: Sequence[int]
) -> Tensor:
    low, high = _range(linear, offset, size, box["brain"].shape)
    source = torch.from_numpy(_crop(box, low, high))
    order = [2, 0, 1]
    shape = [size[i] for i in order]
    grid = _grid(linear[np.ix_(order, order)], (offset - low)[order], shape, (high - low)[order])
    return grid_sample(source[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def _grid(
    linear: NDArray[np.float64], offset: NDArray[np.float64], size: Sequence[int], source: NDArray[np.int_]
) -> Tensor:
    """Voxel -> voxel affine as normalized coordinates of ``grid_sample``, which wants the last axis first."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    voxels = [
        sum((float(row[a]) * axis for a, axis in enumerate(axes)), start=torch.full((), float(shift)).double())
        for row, shift in zip(linear, offset, strict=True)
    ]
    unit = [(2 * v + 1) / int(n) - 1 for v, n in zip(voxels, source, strict=True)]
    return torch.stack(unit[::-1], dim=-1).float()[None]
