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

"""Where a heatmap's evidence lies: shares of its energy, pointing game, overlap, sign outside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from scipy.ndimage import distance_transform_edt
from torch import Tensor

__all__ = ["energy_share", "half_maximum_iou", "outside_sign", "pointing_game"]

_NO_EVIDENCE = 1e-7
_FEW_PEAKS = 64


def energy_share(heatmap: Tensor, region: Tensor) -> Tensor:
    r"""Share of a heatmap's positive evidence that lies in a region; the energy-based pointing game (EPG) for a lesion.

    In [0, 1]; 1 when all of it lies inside. Evidence against the class doesn't count. NaN when the heatmap holds no
    evidence (:math:`\sum h^+ < 10^{-7}`): nothing lies nowhere, and 0 would say that it lies elsewhere.

    .. math:: \sum_p h^+_p m_p / \sum_p h^+_p

    Args:
        heatmap: larger is more evidence.
        region: 1 inside, 0 outside.

    Shape:
        - heatmap: ``BTH[WD]``; region: the same or ``B1H[WD]``
        - output: ``BT``

    Raises:
        ValueError: When shapes don't match, or the heatmap isn't finite.

    Reference:
        H. Wang et al., Score-CAM: score-weighted visual explanations for convolutional neural networks, CVPR workshops
        2020, Eq. 10, with a region instead of a box.

    Example:
        >>> energy_share(torch.tensor([[[3.0, 1.0, -2.0]]]), torch.tensor([[[1, 0, 0]]]))
        tensor([[0.7500]])
    """
    values, inside = checked_pair(heatmap, region)
    positive = values.clamp(min=0)
    total = positive.flatten(2).sum(2)
    share = (positive * inside).flatten(2).sum(2) / total
    return torch.where(total < _NO_EVIDENCE, torch.nan, share)


def pointing_game(heatmap: Tensor, mask: Tensor, spacing: Sequence[float], tolerance_mm: float = 0.0) -> Tensor:
    r"""Whether the strongest evidence lies in the mask, or no farther from it than a tolerance.

    1 hit, 0 miss. When several voxels share the maximum, the share of them that hit, which is what breaking the tie at
    random gives on average: a uniform map scores the size of the mask, not the luck of its first voxel. NaN when the
    mask is empty, or no evidence is positive.

    Args:
        heatmap: larger is more evidence.
        mask: 1 inside.
        spacing: voxel size in mm, one value per spatial dimension.
        tolerance_mm: distance between centers of voxels, in mm.

    Shape:
        - heatmap: ``BTH[WD]``; mask: the same or ``B1H[WD]``
        - output: ``BT``

    Raises:
        ValueError: When shapes don't match, the heatmap isn't finite, or the tolerance is negative.

    Reference:
        J. Zhang et al., Top-down neural attention by excitation backprop, ECCV 2016, section 4.1. Differs from it in:
        tolerance in mm, ties, empty cases.

    Example:
        >>> heatmap, mask = torch.tensor([[[0.0, 0.0, 5.0]]]), torch.tensor([[[1, 0, 0]]])
        >>> [pointing_game(heatmap, mask, [1.5], tolerance).item() for tolerance in (0.0, 3.0)]
        [0.0, 1.0]
    """
    values, inside = checked_pair(heatmap, mask)
    voxel = _checked_spacing(spacing, values.ndim - 2)
    if tolerance_mm < 0:
        raise ValueError(f"tolerance_mm must be at least 0, got {tolerance_mm}")
    out = torch.full(values.shape[:2], torch.nan, device=values.device)
    for sample in range(values.shape[0]):
        for channel in range(values.shape[1]):
            one, region = values[sample, channel], inside[sample, channel if inside.shape[1] > 1 else 0]
            if bool(region.any()) and float(one.max()) > 0:
                out[sample, channel] = _hits(one == one.max(), region, voxel, tolerance_mm)
    return out


def half_maximum_iou(heatmap: Tensor, mask: Tensor, level: float = 0.5) -> Tensor:
    r"""Intersection over union of the mask with the voxels above a share of the heatmap's maximum.

    In [0, 1], 1 is best. A heatmap without positive evidence marks nothing and scores 0. NaN when the mask is empty.

    .. math:: \mathrm{IoU}(\{p : h^+_p / \max_q h^+_q > 0.5\}, m)

    Args:
        heatmap: larger is more evidence.
        mask: 1 inside.
        level: share of the maximum, in [0, 1).

    Shape:
        - heatmap: ``BTH[WD]``; mask: the same or ``B1H[WD]``
        - output: ``BT``

    Raises:
        ValueError: When shapes don't match, the heatmap isn't finite, or the level is out of range.

    Example:
        >>> half_maximum_iou(torch.tensor([[[4.0, 3.0, 1.0]]]), torch.tensor([[[1, 0, 0]]]))
        tensor([[0.5000]])
    """
    if not 0 <= level < 1:
        raise ValueError(f"level must be in [0, 1), got {level}")
    values, inside = checked_pair(heatmap, mask)
    peak = values.flatten(2).amax(2).clamp(min=0).reshape(*values.shape[:2], *(1,) * (values.ndim - 2))
    marked = (values > level * peak) & (peak > 0)
    both = (marked & inside).flatten(2).sum(2).float()
    either = (marked | inside).flatten(2).sum(2)
    return torch.where(inside.flatten(2).any(2), both / either, torch.nan)


def outside_sign(heatmap: Tensor, mask: Tensor) -> Tensor:
    r"""Signed evidence outside of the mask as a share of all evidence.

    In [-1, 1]: 0 is best, positive means evidence for the class outside, negative evidence against it, which losses
    that only push the outside down reward. NaN when :math:`\sum |h| < 10^{-7}`.

    .. math:: \sum_{p: m_p = 0} h_p / \sum_p |h_p|

    Args:
        heatmap: signed, larger is more evidence.
        mask: 1 inside.

    Shape:
        - heatmap: ``BTH[WD]``; mask: the same or ``B1H[WD]``
        - output: ``BT``

    Raises:
        ValueError: When shapes don't match, or the heatmap isn't finite.

    Example:
        >>> outside_sign(torch.tensor([[[2.0, -1.0, -1.0]]]), torch.tensor([[[1, 0, 0]]]))
        tensor([[-0.5000]])
    """
    values, inside = checked_pair(heatmap, mask)
    total = values.abs().flatten(2).sum(2)
    outside = (values * ~inside).flatten(2).sum(2)
    return torch.where(total < _NO_EVIDENCE, torch.nan, outside / total)


def _hits(peaks: Tensor, region: Tensor, spacing: Sequence[float], tolerance_mm: float) -> float:
    """Share of the peaks within the tolerance of the region."""
    if tolerance_mm == 0:
        return float(region[peaks].float().mean())
    scale = torch.tensor(spacing, dtype=torch.float64, device=region.device)
    places = peaks.nonzero()
    if len(places) <= _FEW_PEAKS:
        inside = region.nonzero() * scale
        nearest = torch.stack([torch.linalg.vector_norm(inside - place * scale, dim=1).min() for place in places])
        return float((nearest <= tolerance_mm + 1e-9).double().mean())
    distance = distance_transform_edt(~region.cpu().numpy(), sampling=spacing)
    return float((distance[peaks.cpu().numpy()] <= tolerance_mm + 1e-9).mean())


def plain_tensor(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def checked_pair(heatmap: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Return heatmap (at least float32) and region (bool) as plain tensors that fit each other."""
    values, inside = plain_tensor(heatmap), plain_tensor(region)
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    fits = inside.ndim == values.ndim and inside.shape[1] in (1, values.shape[1] if values.ndim > 1 else 1)
    if values.ndim < 3 or not fits or (inside.shape[0], *inside.shape[2:]) != (values.shape[0], *values.shape[2:]):
        raise ValueError(f"region {tuple(inside.shape)} does not match heatmap {tuple(values.shape)}, B T H [W D]")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"heatmap expected finite values, got {int((~values.isfinite()).sum())} NaN or Inf voxels")
    return values, inside > 0.5 if inside.is_floating_point() else inside.bool()


def _checked_spacing(spacing: Sequence[float], dimensions: int) -> tuple[float, ...]:
    voxel = tuple(float(s) for s in spacing)
    if len(voxel) != dimensions or not all(0 < s < float("inf") for s in voxel):
        raise ValueError(f"spacing expected {dimensions} positive values in mm, got {voxel}")
    return voxel
