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

"""Assign samples to prototypes so that all prototypes are used alike."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_rrr.losses.reduction import full_precision

__all__ = ["sinkhorn"]


@torch.no_grad()
def sinkhorn(similarity: Tensor, valid: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    r"""Balanced soft assignment: entropic optimal transport from samples to prototypes.

    .. math:: Q = \operatorname{argmax}_Q \langle Q, S \rangle + \epsilon H(Q), \qquad Q 1 = 1, \quad
              Q^\top 1 = (n / K) 1

    computed in float32 at least, in logarithms. The last step of an iteration sets the sums of the samples, so that
    these are exact; those of the prototypes are approached.

    Args:
        similarity: ``G n K``, such as cosines.
        valid: ``G n`` boolean; the others get 0 and count for nothing.
        epsilon: softness.
        iterations: at least 1.

    Returns:
        ``G n K``; each valid sample sums to 1.

    Raises:
        ValueError: When the shapes do not fit, or epsilon or iterations are not positive.

    Example:
        >>> sinkhorn(torch.tensor([[[1.0, 0.9], [1.0, 0.2]]]), torch.ones(1, 2, dtype=torch.bool)).round()
        tensor([[[0., 1.],
                 [1., 0.]]])
    """
    if similarity.ndim != 3 or valid.shape != similarity.shape[:2]:
        raise ValueError(
            f"expected similarity G n K and valid G n, got {tuple(similarity.shape)}, {tuple(valid.shape)}"
        )
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"epsilon must be positive and iterations at least 1, got {epsilon} and {iterations}")
    with torch.autocast(similarity.device.type, enabled=False):
        scores = full_precision(similarity) / epsilon
        rows = valid[..., None]
        # a group without samples: any finite number will do, it is set to 0 at the end
        outside = torch.finfo(scores.dtype).min / 4
        for _ in range(iterations):
            scores = torch.where(rows, scores, outside)
            scores = scores - torch.logsumexp(scores, 1, keepdim=True)
            scores = scores - torch.logsumexp(torch.where(rows, scores, 0.0), 2, keepdim=True)
        return torch.where(rows, scores.exp(), 0.0)
