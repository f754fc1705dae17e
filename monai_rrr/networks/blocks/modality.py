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

"""Layers with parameters of their own for each modality, on branches that are stacked along the batch axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["ModalityConv", "ModalityNorm", "ModalityStem"]


class ModalityStem(nn.Module):
    """First convolution of every branch in one grouped convolution.

    Args:
        count: modalities in the image.
        own: sets of weights: ``count``, or 1 for a stem that all modalities share.
        channels: output features of each branch.
        stride: in-plane stride.

    Shape:
        - image: ``B M H W D``; output: ``B M C h w D``.
    """

    def __init__(self, count: int, own: int, channels: int, stride: int) -> None:
        super().__init__()
        if own not in (1, count):
            raise ValueError(f"own must be 1 or {count}, got {own}")
        self.count, self.channels = count, channels
        # an even kernel at stride 2 is centered on the output voxel, so that flips commute with it
        kernel = 4 if stride == 2 else 3
        self.weight = nn.Parameter(torch.empty(own, channels, 1, kernel, kernel, 3))
        self.stride = [stride, stride, 1]
        self.padding = [1, 1, 1]
        self.repeat = count // own
        nn.init.kaiming_normal_(self.weight.flatten(0, 1), nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Convolve each modality with its own kernel."""
        weight = self.weight.repeat(self.repeat, 1, 1, 1, 1, 1).flatten(0, 1)
        out = F.conv3d(image, weight, None, self.stride, self.padding, 1, self.count)
        return out.unflatten(1, (self.count, self.channels))


class ModalityNorm(nn.Module):
    """Instance normalization with factors of each modality.

    Args:
        own: sets of factors.
        channels: features.

    Shape:
        - x: ``P C h w d``, a stack of branches; index: ``P``, which set each row uses.
    """

    def __init__(self, own: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(own, channels))
        self.bias = nn.Parameter(torch.zeros(own, channels))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Normalize each row and channel over space, then scale and shift."""
        # with rows and channels as the channels of one instance, the factors of each row fuse into the normalization
        rows = x.flatten(0, 1).unsqueeze(0)
        out = F.instance_norm(rows, weight=self.weight[index].flatten(), bias=self.bias[index].flatten())
        return out.view_as(x)


class ModalityConv(nn.Module):
    """1x1x1 convolution with weights and bias of each modality: the class head.

    Args:
        own: sets of weights.
        channels: input features.
        classes: output maps.

    Shape:
        - x: ``P C h w d``; index: ``P``; output: ``P K h w d`` in float32.
    """

    def __init__(self, own: int, channels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(own, classes, channels))
        self.bias = nn.Parameter(torch.full((own, classes), -1.0))
        nn.init.normal_(self.weight, std=channels**-0.5)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Project the features of each row by the head of its modality."""
        flat = torch.bmm(self.weight[index], x.flatten(2).to(self.weight.dtype))
        out = flat + self.bias[index].unsqueeze(2)
        return out.view([x.shape[0], out.shape[1], x.shape[2], x.shape[3], x.shape[4]])
