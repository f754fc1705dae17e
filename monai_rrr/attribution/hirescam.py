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

"""HiResCAM of any layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_rrr.attribution.attributor import single_precision
from monai_rrr.attribution.gradcam import layer_gradients
from monai_rrr.attribution.score import ClassScore, volume_score
from monai_rrr.attribution.trace import Trace

__all__ = ["HiResCAM"]


@dataclass(frozen=True)
class HiResCAM:
    r"""Features times their own gradients, summed over the channels, for any layer of any network.

    Signed, larger is more evidence. Other than Grad-CAM, gradients are not averaged over the voxels, so evidence stays
    where the network used it: for a linear head on flattened features it is :math:`\sum_k W_{ck}(p) A_k(p)`, and for a
    linear head on averaged features the closed-form :class:`~monai_rrr.attribution.CAM`. Carries gradient to all
    weights when gradients are enabled.

    .. math:: H_c(p) = \sum_k \frac{\partial s_c}{\partial A_k(p)} A_k(p)

    Args:
        layer: name of the layer, output ``BKh[wd]``.
        relu: keep evidence for the class only.
        score: what a class scores, see :mod:`monai_rrr.attribution.score`.
        reshape: maps the output of the layer to ``BKh[wd]``, see :mod:`monai_rrr.attribution.layout`.

    Shape:
        - class_idx, output: as of :class:`~monai_rrr.attribution.GradCAM`.

    Raises:
        ValueError: As :class:`~monai_rrr.attribution.GradCAM`.

    Reference:
        R. Draelos and L. Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
        networks, arXiv 2011.08891, Eq. 3.

    Example:
        >>> from torch import nn
        >>> from monai_rrr.attribution.trace import record
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3, bias=False))
        >>> trace = record(network, torch.rand(2, 1, 8, 8), ["0"])
        >>> heatmap = HiResCAM("0")(trace, torch.tensor([0, 2]))
        >>> bool(heatmap[1].sum().isclose(trace.logits[1, 2], atol=1e-5))
        True
    """

    layer: str
    relu: bool = False
    score: ClassScore = volume_score
    reshape: Callable[[Tensor], Tensor] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer that must be recorded."""
        return (self.layer,)

    def __call__(self, trace: Trace, class_idx: Tensor) -> Tensor:
        """Return the heatmaps of the requested classes."""
        features, gradients = layer_gradients(trace, self.layer, class_idx, self.score, self.reshape)
        with torch.autocast(features.device.type, enabled=False):
            features = single_precision(features)
            heatmap = torch.stack([(features * gradient).sum(1) for gradient in gradients], dim=1)
        return heatmap.relu() if self.relu else heatmap
