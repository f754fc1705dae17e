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

"""How one annotator departs from the consensus: a subset of convolution kernels on the sphere."""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_rrr.losses.reduction import full_precision

__all__ = ["AnnotatorKernels", "TendencyEmbedding"]


class TendencyEmbedding(nn.Module):
    r"""Features as points on the unit sphere.

    .. math:: g(v) = \mathrm{normalize}\big(G \cdot \mathrm{DWConv}_{3}(F)(v)\big)

    Args:
        features: channels of the features.
        width: dimensions of the embedding.
        stride: 2 averages the features over 2x2x2 voxels first, which divides time and memory of all that follows by
            8; an average, unlike a kernel with a stride, keeps the centers where up-sampling expects them.

    Shape:
        - input: ``BFDHW``; output: ``BEdhw``, float32 at least, of norm 1 in each voxel.
    """

    def __init__(self, features: int, width: int, stride: int = 1) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride}")
        self.stride = stride
        self.depthwise = nn.Conv3d(features, features, 3, padding=1, groups=features)
        self.project = nn.Conv3d(features, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the embedding."""
        if self.stride == 2:
            features = F.avg_pool3d(features, 2)
        return F.normalize(full_precision(self.project(self.depthwise(features))), dim=1)


class AnnotatorKernels(nn.Module):
    r"""Kernels of one annotator, ``M`` for each class, and how much they count.

    .. math:: a_{c,m}(v) = s\, \langle k_{c,m}, g(v) \rangle, \qquad \Delta_c(v) = \gamma \big[ \tau \log \tfrac1M
              \sum_m e^{a_{c,m}(v) / \tau} - \operatorname{mean}_c(\cdot) \big]

    With ``gamma`` 0, where training starts, the annotator draws what the consensus draws. Kernels of 3x3x3 voxels add
    to ``a`` what the neighborhood answers, ``s`` times a convolution of ``g`` that starts at 0: ``k`` stays the
    direction that prototypes are compared with.

    Args:
        num_classes: ``C``.
        slots: ``M``.
        width: dimensions of the embedding.
        temperature: ``tau``; lower lets one kernel speak for all.
        size: voxels along an edge of the kernels, 1 or 3.

    Shape:
        - embedding: ``BEdhw``; scale: scalar; output: ``BCdhw`` float32 at least, sums to 0 over the classes.
    """

    def __init__(self, num_classes: int, slots: int, width: int, temperature: float = 1.0, size: int = 1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if size not in (1, 3):
            raise ValueError(f"size must be 1 or 3, got {size}")
        self.temperature = temperature
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, slots, width), dim=-1))
        self.around = nn.Parameter(torch.zeros(num_classes * slots, width, 3, 3, 3)) if size == 3 else None
        self.gamma = nn.Parameter(torch.zeros(()))

    def kernels(self) -> Tensor:
        """The kernels ``C M E``, of norm 1, float32 at least."""
        return F.normalize(full_precision(self.weight), dim=-1)

    def forward(self, embedding: Tensor, scale: Tensor) -> Tensor:
        """Return the departure from the consensus, in logits."""
        kernels = self.kernels()
        classes, slots, width = kernels.shape
        cosine = F.conv3d(embedding, kernels.reshape(classes * slots, width, 1, 1, 1))
        if self.around is not None:
            cosine = cosine + F.conv3d(embedding, full_precision(self.around), padding=1)
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = cosine.to(kernels.dtype).unflatten(1, (classes, slots))
            best = torch.logsumexp(scale * cosine / self.temperature, 2) - log(slots)
            best = self.temperature * best
            return self.gamma * (best - best.mean(1, keepdim=True))
