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

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ModalityConv", "ModalityNorm", "ModalityStem"]


class ModalityStem(nn.Module):
    """First convolution of every branch.

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
        nn.init.kaiming_normal_(self.weight.flatten(0, 1), nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Convolve each modality with its own kernel."""
        branches: list[Tensor] = []
        for modality in range(self.count):
            # one channel at a time: a grouped convolution takes three times as long on CPU
            weight = self.weight[modality % self.weight.shape[0]]
            one = image[:, modality : modality + 1].contiguous()
            branches.append(F.conv3d(one, weight, None, self.stride, self.padding))
        return torch.stack(branches, 1)


class ModalityNorm(nn.Module):
    """Normalization with factors of each modality.

    ``"instance"`` normalizes each channel over space, and that leaks: a bright tumor moves the statistics, so that the
    rest of the brain tells the tag, and evidence may land anywhere but in the tumor. ``"none"`` only scales and shifts:
    what a voxel shows depends on nothing outside its field of view.

    Args:
        own: sets of factors.
        channels: features.
        kind: ``"instance"`` or ``"none"``.

    Shape:
        - x: ``P C h w d``, a stack of branches; index: ``P``, which set each row uses.

    Raises:
        ValueError: When ``kind`` is unknown.
    """

    def __init__(self, own: int, channels: int, kind: str = "none") -> None:
        super().__init__()
        if kind not in ("instance", "none"):
            raise ValueError(f"kind must be instance or none, got {kind!r}")
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(own, channels))
        self.bias = nn.Parameter(torch.zeros(own, channels))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Normalize, then scale and shift each row by the factors of its modality."""
        weight, bias = self.weight[index], self.bias[index]
        if self.kind == "instance":
            # with rows and channels as the channels of one instance, the factors fuse into the normalization
            rows = x.flatten(0, 1).unsqueeze(0)
            return F.instance_norm(rows, weight=weight.flatten(), bias=bias.flatten()).view_as(x)
        return torch.addcmul(bias[:, :, None, None, None], x, weight[:, :, None, None, None])


class ModalityConv(nn.Module):
    """1x1x1 convolution with weights and bias of each modality: the class head.

    Args:
        own: sets of weights.
        channels: input features.
        classes: output maps.
        prior: probability of every class in every voxel at the start, which sets the bias. Low, as regions are small:
            what nothing in the training pushes up then stays dark.

    Shape:
        - x: ``P C h w d``; index: ``P``; output: ``P K h w d`` in float32.

    Reference:
        The prior is that of Lin et al., Focal loss for dense object detection, arXiv 1708.02002, section 4.1.
    """

    def __init__(self, own: int, channels: int, classes: int, prior: float = 0.05) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(own, classes, channels))
        self.bias = nn.Parameter(torch.full((own, classes), math.log(prior / (1 - prior))))
        nn.init.normal_(self.weight, std=channels**-0.5)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Project the features of each row by the head of its modality, also under autocast in float32."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            out = self.project(x, index)
        elif torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                out = self.project(x, index)
        else:
            out = self.project(x, index)
        return out

    def project(self, x: Tensor, index: Tensor) -> Tensor:
        """Compute ``forward`` in the precision of the weights."""
        flat = torch.bmm(self.weight[index], x.flatten(2).to(self.weight.dtype))
        out = flat + self.bias[index].unsqueeze(2)
        return out.view([x.shape[0], out.shape[1], x.shape[2], x.shape[3], x.shape[4]])
