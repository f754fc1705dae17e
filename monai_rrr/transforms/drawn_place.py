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

"""The voxels about which annotators can differ."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from monai_rrr.transforms.truncated_distance import truncated_distance

__all__ = ["drawn_place"]


def drawn_place(drawn: Tensor, spacing: Sequence[float], margin: float) -> Tensor:
    """Places in the flat volume of the voxels near to what anybody drew, of which somebody says something.

    Args:
        drawn: ``RDHW`` classes, negative where missing.
        spacing: mm per voxel.
        margin: mm; nearer than this is near.

    Example:
        >>> import torch
        >>> drawn_place(torch.tensor([0, 0, 0, 1, 0, -1]).reshape(1, 1, 1, 6), (1.0, 1.0, 1.0), 2.0).tolist()
        [1, 2, 3, 4]
    """
    union = (drawn > 0).any(0)
    near = truncated_distance(union[None, None], spacing, margin)[0, 0] > -margin
    return (near & (drawn >= 0).any(0)).flatten().nonzero()[:, 0]
