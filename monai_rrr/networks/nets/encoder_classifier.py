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

"""Any encoder with a linear head: a classifier whose last feature map can be explained in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

__all__ = ["EncoderClassifier"]


class EncoderClassifier(nn.Module):
    r"""Global average pooling and a linear head on the features of an encoder.

    Made for the encoders of segmentation networks, such as MONAI's ``SegResEncoder`` (list of levels), Swin
    ``SwinTransformer`` (list of stages) or ``ViT`` (tokens, and the states of its blocks), but takes any module. The
    features under the head are the layer ``features``: ``CAM("features", head="head")`` and ``GradCAM("features")``
    explain every such network alike.

    .. math:: z_c = \\sum_k W_{ck} \\frac1N \\sum_p A_k(p) + b_c

    Args:
        encoder: maps ``BMH[WD]`` to features ``BKh[wd]``, or to a list or tuple that holds them.
        channels: ``K``.
        num_classes: ``C``.
        output: entry of the list or tuple, such as ``-1`` for the deepest level.
        grid: patches along each spatial dimension, for encoders that return tokens ``BNK``; the last one runs fastest.
            Leading tokens beyond these, such as a class token, are left out.

    Shape:
        - image: ``BMH[WD]``
        - output: logits ``BC``

    Raises:
        ValueError: When an argument is out of range, or the features don't fit ``channels`` or ``grid``.
        TypeError: When the encoder returns something else than features.

    Example:
        >>> import torch
        >>> from monai.networks.nets.segresnet_ds import SegResEncoder
        >>> network = EncoderClassifier(SegResEncoder(3, 8, 4, blocks_down=(1, 1)), channels=16, num_classes=2)
        >>> network(torch.rand(1, 4, 16, 16, 16)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self, encoder: nn.Module, channels: int, num_classes: int, output: int = -1, grid: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if channels < 1 or num_classes < 1 or (grid is not None and (not grid or min(grid) < 1)):
            raise ValueError(
                f"expected channels, num_classes and grid from 1, got {channels}, {num_classes} and {grid}"
            )
        self.encoder = encoder
        self.channels = channels
        self.output = output
        self.grid = None if grid is None else tuple(grid)
        self.features = nn.Identity()
        self.head = nn.Linear(channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``BC``."""
        found = self.encoder(image)
        if isinstance(found, (list, tuple)):
            found = found[self.output]
        if not isinstance(found, Tensor):
            raise TypeError(f"expected the encoder to return features, got {type(found).__name__}")
        features = found if self.grid is None else self._laid_out(found)
        if features.ndim != image.ndim or features.shape[1] != self.channels:
            raise ValueError(
                f"expected features B {self.channels} and {image.ndim - 2} spatial dimensions, "
                f"got {tuple(features.shape)}"
            )
        pooled: Tensor = self.features(features).flatten(2).mean(2)
        logits: Tensor = self.head(pooled)
        return logits

    def _laid_out(self, tokens: Tensor) -> Tensor:
        grid = self.grid or ()
        if tokens.ndim != 3 or tokens.shape[1] < prod(grid):
            raise ValueError(f"expected tokens B {prod(grid)} {self.channels}, got {tuple(tokens.shape)}")
        return tokens[:, -prod(grid) :].transpose(1, 2).reshape(tokens.shape[0], -1, *grid)
