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

"""What a class scores: the scalar whose gradient an attributor takes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from monai_rrr.attribution.attributor import check_classes, class_columns

__all__ = ["ClassScore", "argmax_score", "positive_score", "volume_score"]

ClassScore = Callable[[Tensor, Tensor], Tensor]
"""``(logits BK or BKH[WD], class_idx B or BT) -> BT``, differentiable."""


def volume_score(logits: Tensor, class_idx: Tensor) -> Tensor:
    r"""Logit of each class, summed over the whole volume for a segmentation network.

    .. math:: s_c = \sum_p z_c(p)

    Args:
        logits: ``BK``, or ``BKH[WD]`` of a segmentation network.
        class_idx: ``B`` or ``BT``.

    Returns:
        ``BT``.

    Example:
        >>> import torch
        >>> volume_score(torch.tensor([[1.0, 5.0]]), torch.tensor([1]))
        tensor([[5.]])
        >>> volume_score(torch.tensor([[[1.0, 2.0], [5.0, -1.0]]]), torch.tensor([[0, 1]]))
        tensor([[3., 4.]])
    """
    return _selected(logits, class_idx).flatten(2).sum(2)


def argmax_score(logits: Tensor, class_idx: Tensor) -> Tensor:
    r"""Logit of each class, summed over the voxels where it wins: for segmentation networks trained with softmax.

    Zero, with zero gradient, for a class that wins nowhere. For ``BK`` logits it is the logit itself.

    .. math:: s_c = \sum_{p:\, \arg\max_k z_k(p) = c} z_c(p)

    Args:
        logits: ``BK``, or ``BKH[WD]`` of a segmentation network.
        class_idx: ``B`` or ``BT``.

    Returns:
        ``BT``.

    Reference:
        K. Vinogradova et al., Towards interpretable semantic segmentation via gradient-weighted class activation
        mapping, AAAI 2020 (Seg-Grad-CAM), with the predicted mask as the set of voxels.

    Example:
        >>> import torch
        >>> argmax_score(torch.tensor([[[1.0, 2.0, 3.0], [5.0, -1.0, 0.0]]]), torch.tensor([[0, 1]]))
        tensor([[5., 5.]])
    """
    if logits.ndim == 2:
        return volume_score(logits, class_idx)
    selected = _selected(logits, class_idx)
    columns = class_columns(class_idx, logits.shape[0])
    wins = logits.argmax(1, keepdim=True) == columns.reshape(*columns.shape, *(1,) * (logits.ndim - 2))
    return (selected * wins).flatten(2).sum(2)


def positive_score(logits: Tensor, class_idx: Tensor) -> Tensor:
    r"""Logit of each class, summed over the voxels where it is positive: for networks trained with sigmoid.

    The set of voxels is the predicted mask at probability 0.5, so overlapping regions (WT, TC, ET) each have their own.
    Zero, with zero gradient, for a class that is predicted nowhere. For ``BK`` logits it is the logit itself.

    .. math:: s_c = \sum_p \max(z_c(p), 0)

    Args:
        logits: ``BK``, or ``BKH[WD]`` of a segmentation network.
        class_idx: ``B`` or ``BT``.

    Returns:
        ``BT``.

    Example:
        >>> import torch
        >>> positive_score(torch.tensor([[[1.0, 2.0, 3.0], [5.0, -1.0, 0.0]]]), torch.tensor([[0, 1]]))
        tensor([[6., 5.]])
    """
    if logits.ndim == 2:
        return volume_score(logits, class_idx)
    return _selected(logits, class_idx).clamp(min=0).flatten(2).sum(2)


def _selected(logits: Tensor, class_idx: Tensor) -> Tensor:
    if logits.ndim < 2:
        raise ValueError(f"expected logits of shape B K or B K H [W D], got {tuple(logits.shape)}")
    columns = class_columns(class_idx, logits.shape[0])
    check_classes(columns, logits.shape[1])
    spatial = logits.shape[2:]
    index = columns.reshape(*columns.shape, *(1,) * len(spatial)).expand(*columns.shape, *spatial)
    selected = logits.gather(1, index)
    return selected if spatial else selected.unsqueeze(-1)
