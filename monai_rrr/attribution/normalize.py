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

"""Normalization and resizing of heatmaps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["normalize_l2", "normalize_max", "normalize_minmax", "resize_heatmap"]


def normalize_max(heatmap: Tensor, eps: float = 1e-12) -> Tensor:
    r"""Divide the positive part of each heatmap by its maximum.

    In [0, 1], larger is more evidence; evidence against the class becomes 0. A map without positive values gives zeros.

    .. math:: \hat h_p = \max(h_p, 0) / \max(\max_q h_q, \epsilon)

    Args:
        heatmap: ``BTh[wd]``; each sample and class is normalized on its own. Half precision is raised to float32.
        eps: lower bound of the denominator.

    Raises:
        ValueError: When the heatmap has not two leading and one to three spatial dimensions.

    Example:
        >>> normalize_max(torch.tensor([[[-1.0, 2.0, 4.0]]]))
        tensor([[[0.0000, 0.5000, 1.0000]]])
    """
    positive = _checked(heatmap).clamp(min=0)
    return positive / positive.amax(dim=_spatial(heatmap), keepdim=True).clamp(min=eps)


def normalize_minmax(heatmap: Tensor, eps: float = 1e-12) -> Tensor:
    r"""Map the minimum of each heatmap to 0 and its maximum to 1.

    Polarity is kept: larger is more evidence. A flat map gives zeros.

    .. math:: \hat h_p = (h_p - \min_q h_q) / \max(\max_q h_q - \min_q h_q, \epsilon)

    Args:
        heatmap: ``BTh[wd]``; each sample and class is normalized on its own. Half precision is raised to float32.
        eps: lower bound of the denominator.

    Raises:
        ValueError: When the heatmap has not two leading and one to three spatial dimensions.

    Example:
        >>> normalize_minmax(torch.tensor([[[-1.0, 0.0, 3.0]]]))
        tensor([[[0.0000, 0.2500, 1.0000]]])
    """
    heatmap = _checked(heatmap)
    low, high = torch.aminmax(heatmap.flatten(2), dim=2, keepdim=True)
    shape = heatmap.shape[:2] + (1,) * (heatmap.ndim - 2)
    return (heatmap - low.reshape(shape)) / (high - low).clamp(min=eps).reshape(shape)


def normalize_l2(heatmap: Tensor, eps: float = 1e-12) -> Tensor:
    r"""Divide each heatmap by its Euclidean norm.

    Signs are kept; the result has norm 1, or is all zero for an all-zero map, with a finite gradient in both cases.

    .. math:: \hat h_p = h_p / \max(\lVert h \rVert_2, \epsilon)

    Args:
        heatmap: ``BTh[wd]``; each sample and class is normalized on its own. Half precision is raised to float32.
        eps: lower bound of the norm. WSS-CMER adds it inside the norm, ``norm(h + eps)``, which is no lower bound.

    Raises:
        ValueError: When the heatmap has not two leading and one to three spatial dimensions.

    Example:
        >>> normalize_l2(torch.tensor([[[3.0, 0.0, -4.0]]]))
        tensor([[[ 0.6000,  0.0000, -0.8000]]])
    """
    heatmap = _checked(heatmap)
    norm: Tensor = torch.linalg.vector_norm(heatmap, dim=_spatial(heatmap), keepdim=True)
    return heatmap / norm.clamp(min=eps)


def resize_heatmap(heatmap: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """Interpolate heatmaps linearly to another grid over the same field of view.

    Linear, bilinear or trilinear with ``align_corners=False``: the outer faces of the corner voxels coincide, so a map
    keeps its place in mm. Differentiable; a map that has the size already is returned as it is.

    Args:
        heatmap: ``BTh[wd]``. Half precision is raised to float32.
        spatial_size: voxels along each spatial dimension.

    Raises:
        ValueError: When the numbers of spatial dimensions differ.

    Example:
        >>> resize_heatmap(torch.zeros(1, 3, 4, 4, 4), (16, 16, 8)).shape
        torch.Size([1, 3, 16, 16, 8])
    """
    heatmap = _checked(heatmap)
    size = tuple(int(n) for n in spatial_size)
    if len(size) != heatmap.ndim - 2:
        raise ValueError(f"expected {heatmap.ndim - 2} spatial sizes for heatmap {tuple(heatmap.shape)}, got {size}")
    if size == tuple(heatmap.shape[2:]):
        return heatmap
    return interpolate(heatmap, size=size, mode=("linear", "bilinear", "trilinear")[len(size) - 1], align_corners=False)


def _spatial(heatmap: Tensor) -> tuple[int, ...]:
    return tuple(range(2, heatmap.ndim))


def _checked(heatmap: Tensor) -> Tensor:
    if not 3 <= heatmap.ndim <= 5:
        raise ValueError(f"expected a heatmap of shape B T h [w d], got {tuple(heatmap.shape)}")
    return heatmap.float() if heatmap.dtype in (torch.float16, torch.bfloat16) else heatmap
