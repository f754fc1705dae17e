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

"""Pooling of class maps into class scores inside the brain."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["masked_log_mean_exp", "modality_shares"]


def masked_log_mean_exp(maps: Tensor, mask: Tensor, dims: list[int], sharpness: float = 5.0) -> Tensor:
    r"""Smooth maximum of ``maps`` over the masked voxels.

    .. math:: z = \frac{1}{r} \log \frac{1}{|\Omega|} \sum_{x \in \Omega} \exp(r\, s(x))

    Lies between the mean (``r`` to 0) and the maximum (``r`` to infinity); a lesion that fills the share ``rho`` of the
    brain loses only ``log(1 / rho) / r`` against the maximum, where the mean loses the factor ``rho``.

    Args:
        maps: class evidence in logits, any shape.
        mask: boolean, broadcastable to ``maps``; ``True`` inside the brain.
        dims: axes to pool over.
        sharpness: ``r`` of the equation, in 1 / logit.

    Returns:
        ``maps`` without ``dims``. Where the mask is empty the score is 0 (undecided), without gradient.

    Raises:
        ValueError: When ``sharpness`` is not positive.

    Example:
        >>> masked_log_mean_exp(torch.full((1, 4), 2.0), torch.ones(1, 4, dtype=torch.bool), [1])
        tensor([2.])
    """
    if sharpness <= 0:
        raise ValueError(f"sharpness must be positive, got {sharpness}")
    maps = maps if maps.dtype == torch.float64 else maps.float()
    inside = mask.expand_as(maps)
    count = inside.sum(dims).to(maps.dtype)
    # a finite stand-in for -inf: exp gives 0 and the gradient stays defined when a slice has no brain at all
    lowest = torch.full_like(maps, -1e4)
    total = torch.logsumexp(torch.where(inside, sharpness * maps, lowest), dims)
    score = (total - count.clamp(min=1).log()) / sharpness
    return torch.where(count > 0, score, torch.zeros_like(score))


def modality_shares(reliability: Tensor, present: Tensor) -> Tensor:
    """Weight of each modality in the fused map: its reliability among the modalities present.

    Args:
        reliability: ``M K``, not negative.
        present: ``B M``, boolean or 0 and 1.

    Returns:
        ``B M K``; sums to 1 over the modalities, or is 0 where none is present.

    Example:
        >>> modality_shares(torch.tensor([[0.5], [0.3], [0.2]]), torch.tensor([[True, True, False]])).flatten()
        tensor([0.6250, 0.3750, 0.0000])
    """
    share = reliability.unsqueeze(0) * present.unsqueeze(2)
    return share / share.sum(1, keepdim=True).clamp(min=1e-8)
