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

"""Layouts of features other than channels first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

__all__ = ["ChannelsLast", "TokenGrid"]


@dataclass(frozen=True)
class TokenGrid:
    """Lay out tokens ``BNC`` of a transformer as ``BCh[wd]``.

    Args:
        grid: patches along each spatial dimension, the last one running fastest.
        skip: leading tokens that are no patches, such as one class token.

    Raises:
        ValueError: When the number of tokens does not fit.

    Example:
        >>> import torch
        >>> TokenGrid((2, 2, 2), skip=1)(torch.zeros(1, 9, 16)).shape
        torch.Size([1, 16, 2, 2, 2])
    """

    grid: Sequence[int]
    skip: int = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the tokens as a channels-first grid."""
        expected = prod(self.grid) + self.skip
        if tokens.ndim != 3 or tokens.shape[1] != expected:
            raise ValueError(f"expected tokens of shape B {expected} C, got {tuple(tokens.shape)}")
        return tokens[:, self.skip :].transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *self.grid)


@dataclass(frozen=True)
class ChannelsLast:
    """Lay out features ``Bh[wd]C``, as inside Swin transformer blocks, as ``BCh[wd]``.

    Example:
        >>> import torch
        >>> ChannelsLast()(torch.zeros(1, 4, 4, 2, 48)).shape
        torch.Size([1, 48, 4, 4, 2])
    """

    def __call__(self, features: Tensor) -> Tensor:
        """Return the features with channels first."""
        return features.movedim(-1, 1)
