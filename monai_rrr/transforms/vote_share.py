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

"""What several annotators of a case say together."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["vote_share"]


def vote_share(annotations: Tensor, annotated: Tensor, num_classes: int) -> Tensor:
    """Share of the annotators of a case who drew a class, ``BCDHW``; zeros where nobody drew anything.

    Args:
        annotations: ``BRDHW`` classes, negative where missing.
        annotated: ``BR`` boolean.
        num_classes: ``C``.

    Example:
        >>> drawn = torch.tensor([0, 1, 1, 2]).reshape(1, 4, 1, 1, 1)
        >>> vote_share(drawn, torch.tensor([[True, True, True, False]]), 3).flatten()
        tensor([0.3333, 0.6667, 0.0000])
    """
    known = (annotations >= 0) & annotated.bool()[:, :, None, None, None]
    votes = torch.stack([((annotations == c) & known).sum(1) for c in range(num_classes)], 1)
    return votes / known.sum(1, keepdim=True).clamp(min=1)
