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

"""Guided backpropagation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_rrr.attribution.input_gradient import input_gradients
from monai_rrr.attribution.rules import guided_rectifiers
from monai_rrr.attribution.score import ClassScore, volume_score
from monai_rrr.attribution.trace import Trace

__all__ = ["GuidedBackprop"]


@dataclass(frozen=True)
class GuidedBackprop:
    r"""Gradient of the class score by the image, where only positive gradients pass back through rectifiers.

    Not negative, larger is more evidence of either sign. Known to be largely independent of the weights and close to an
    edge detector: kept for faithful runs of published methods, not recommended for new ones. Costs a forward and a
    backward pass per class; a loss on it needs double backward. The rule holds only while the heatmap is made: the
    gradient of a loss on it, which goes through the same rectifiers, is the exact one.

    .. math:: G_c(p) = \sum_m |g_m(p)|, \qquad
              g^{l} = \frac{\partial a^{l+1}}{\partial a^l}^{\!\top} \max(g^{l+1}, 0) \text{ at rectifiers}

    Args:
        per_modality: keep the modality axis instead of summing over it.
        score: what a class scores, see :mod:`monai_rrr.attribution.score`.

    Shape:
        - class_idx: ``B`` or ``BT``. Logits ``BMK`` of several heads are summed over the heads.
        - output: ``BTH[WD]``, or ``BTMH[WD]`` with ``per_modality``; at least float32.

    Raises:
        ValueError: When the network calls no rectifier (ReLU, ReLU6, leaky or parametric ReLU): the rule would change
            nothing.

    Reference:
        J. Springenberg et al., Striving for simplicity: the all convolutional net, ICLR 2015 workshop, section 3.4.
        Differs from it in: leaky and parametric ReLU are guided as well, in front of their own derivative.

    Example:
        >>> from torch import nn
        >>> from monai_rrr.attribution.trace import record
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = GuidedBackprop()(record(network, torch.rand(2, 1, 8, 8), ()), torch.tensor([0, 2]))
        >>> heatmap.shape, network[0].weight.grad is None
        (torch.Size([2, 1, 8, 8]), True)
    """

    per_modality: bool = False
    score: ClassScore = volume_score

    @property
    def layers(self) -> tuple[str, ...]:
        """No layer is needed."""
        return ()

    def __call__(self, trace: Trace, class_idx: Tensor) -> Tensor:
        """Return the heatmaps of the requested classes."""
        rule = guided_rectifiers()
        _, gradients = input_gradients(trace, class_idx, rule, self.score)
        if rule.calls == 0:
            raise ValueError(
                "expected a network that calls ReLU, LeakyReLU or PReLU, found none: "
                "guided backpropagation would be the plain gradient"
            )
        heatmap = torch.stack(gradients, dim=1).abs()
        return heatmap if self.per_modality else heatmap.sum(2)
