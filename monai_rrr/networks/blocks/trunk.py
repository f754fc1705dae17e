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

"""The shared body of the branches: a light U-Net that keeps the slices."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from monai_rrr.networks.blocks.modality import ModalityNorm

__all__ = ["UNetTrunk"]


class ConvBlock(nn.Module):
    """A 3x3x1 and a residual 1x1x1 convolution, each with the normalization of the modality and an activation.

    The field of view stays small on purpose: within a tagged slice nothing keeps evidence from spreading as far as the
    field of view allows, so larger kernels blur the class maps. Slices are the unit of the tags and stay apart.
    """

    def __init__(self, inputs: int, outputs: int, own: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, (3, 3, 1), padding=(1, 1, 0))
        self.norm1 = ModalityNorm(own, outputs, norm)
        self.conv2 = nn.Conv3d(outputs, outputs, 1)
        self.norm2 = ModalityNorm(own, outputs, norm)
        self.act = nn.LeakyReLU(0.1)
        for conv in (self.conv1, self.conv2):
            # keeps the scale of the features from layer to layer, so that normalization can be left out
            nn.init.kaiming_normal_(conv.weight, 0.1)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        hidden = self.act(self.norm1(self.conv1(x), index))
        out: Tensor = self.act(hidden + self.norm2(self.conv2(hidden), index))
        return out


class UNetTrunk(nn.Module):
    """U-Net over a stack of branches: in-plane pooling only, output at the resolution of the input.

    Down-sampling is average pooling over 2x2 voxels: it suppresses aliasing and, other than a kernel centered on every
    second voxel, commutes exactly with flips and quarter turns of an even grid.

    Args:
        channels: features per level.
        own: sets of normalization factors.
        norm: kind of normalization, see :class:`~monai_rrr.networks.blocks.modality.ModalityNorm`.

    Shape:
        - x: ``P C h w d`` with ``C = channels[0]``; index: ``P``; output: as ``x``.
    """

    def __init__(self, channels: Sequence[int], own: int, norm: str = "none") -> None:
        super().__init__()
        self.norm = ModalityNorm(own, channels[0], norm)
        self.act = nn.LeakyReLU(0.1)
        self.encoder = nn.ModuleList(
            ConvBlock(channels[max(level - 1, 0)], channels[level], own, norm) for level in range(len(channels))
        )
        upwards = list(reversed(range(len(channels) - 1)))
        self.lateral = nn.ModuleList(nn.Conv3d(channels[n + 1], channels[n], 1, bias=False) for n in upwards)
        self.decoder = nn.ModuleList(ConvBlock(channels[n], channels[n], own, norm) for n in upwards)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Return features for the head."""
        x = self.act(self.norm(x, index))
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.avg_pool3d(x, (2, 2, 1)), index)
            skips.append(x)
        # the skip is added, not concatenated, which halves the cost of the decoder
        for lateral, block in zip(self.lateral, self.decoder):  # noqa: B905 (TorchScript knows no strict)
            skips.pop()
            x = block(skips[-1] + F.interpolate(lateral(x), size=skips[-1].shape[2:], mode="nearest"), index)
        return x
