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

"""The encoder of a MONAI segmentation network as an image classifier."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import Tensor, nn

__all__ = ["SegmenterClassifier"]


class SegmenterClassifier(nn.Module):
    """The contracting half of a ``SegResNet``, ``UNet`` or ``DynUNet``, global average pooling and a linear head.

    The layers are those of the given network, the same objects; its expanding half is left out.

    Args:
        network: the segmentation network.
        num_classes: classes ``K``.

    Shape:
        - image: ``BMH[WD]``; output: ``BK``.

    Raises:
        TypeError: When the network is of another kind.

    Example:
        >>> import torch
        >>> network = SegResNet(3, init_filters=8, in_channels=4, blocks_down=(1, 1), blocks_up=(1,))
        >>> SegmenterClassifier(network, 3)(torch.rand(2, 4, 8, 8, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        if isinstance(network, SegResNet):
            drop = [network.dropout] if network.dropout_prob is not None else []
            layers = [network.convInit, *drop, *network.down_layers]
            channels = network.init_filters * 2 ** (len(network.down_layers) - 1)
            spatial_dims = network.spatial_dims
        elif isinstance(network, UNet):
            layers = []
            inner: Any = network.model
            while isinstance(inner, nn.Sequential) and len(inner) == 3 and hasattr(inner[1], "submodule"):
                layers.append(inner[0])
                inner = inner[1].submodule
            layers.append(inner)
            channels, spatial_dims = network.channels[len(layers) - 1], network.dimensions
        elif isinstance(network, DynUNet):
            layers = [network.input_block, *network.downsamples, network.bottleneck]
            channels, spatial_dims = network.filters[-1], network.spatial_dims
        else:
            raise TypeError(f"expected a SegResNet, UNet or DynUNet of MONAI, got {type(network).__name__}")
        self.features = nn.Sequential(*layers)
        self.pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[spatial_dims - 1](1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return class logits."""
        logits: Tensor = self.head(self.flatten(self.pool(self.features(image))))
        return logits
