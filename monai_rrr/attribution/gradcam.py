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

"""Grad-CAM of any layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_rrr.attribution.attributor import recorded, single_precision
from monai_rrr.attribution.gradient import class_gradients
from monai_rrr.attribution.score import ClassScore, volume_score
from monai_rrr.attribution.trace import Trace

__all__ = ["GradCAM"]


@dataclass(frozen=True)
class GradCAM:
    r"""Gradient-weighted class activation map of any layer of any network.

    Larger is more evidence. One forward pass (the trace) serves all classes; each class costs one backward pass from
    the logits down to the layer. The result carries gradient to all weights when gradients are enabled (second-order
    through the part of the network above the layer); the ``.grad`` of no tensor is touched.

    .. math:: \alpha_{ck} = \frac{1}{N} \sum_p \frac{\partial s_c}{\partial A_k(p)}, \qquad
              H_c(p) = \max\Big(\sum_k \alpha_{ck} A_k(p), 0\Big)

    Args:
        layer: name of the layer, output ``BKh[wd]``.
        relu: keep evidence for the class only, as the paper does; ``False`` keeps the sign.
        score: what a class scores. Default: its logit, summed over the volume for a segmentation network; see
            :mod:`monai_rrr.attribution.score` for the sum over the predicted mask.
        reshape: maps the output of the layer to ``BKh[wd]`` when it is laid out differently, such as the tokens of a
            transformer; see :mod:`monai_rrr.attribution.layout`. Default: features must be ``BKh[wd]`` already.

    Shape:
        - class_idx: ``B`` or ``BT``. When the features hold several entries per sample in their batch axis, each row
          counts for all of its entries. Logits ``BMK`` of several heads are summed over the heads.
        - output: ``BTh[wd]``, on the grid of the layer, at least float32.

    Raises:
        ValueError: When the layer was not recorded, has another shape, carries no gradient (recorded under
            ``torch.no_grad``) or does not lead to the logits, or a class index is out of range.
        TypeError: When ``class_idx`` is no long tensor.

    Note:
        Through BatchNorm in training mode the logits of one sample depend on the others; the gradient of the summed
        scores is taken, as everywhere. Classes are a loop over one graph: a vectorized backward pass
        (``is_grads_batched``) was no faster on CPU and fails in double backward through GroupNorm.

    Reference:
        R. Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization, ICCV
        2017, Eq. 1 and 2.

    Example:
        >>> from torch import nn
        >>> from monai_rrr.attribution.trace import record
        >>> head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), head)
        >>> trace = record(network, torch.rand(2, 1, 8, 8), ["1"])
        >>> heatmap = GradCAM("1")(trace, torch.tensor([0, 2]))
        >>> heatmap.shape, heatmap.requires_grad, network[0].weight.grad is None
        (torch.Size([2, 1, 6, 6]), True, True)
    """

    layer: str
    relu: bool = True
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
            weights = [gradient.flatten(2).mean(2) for gradient in gradients]
            heatmap = torch.stack([torch.einsum("bk...,bk->b...", features, weight) for weight in weights], dim=1)
        return heatmap.relu() if self.relu else heatmap


def layer_gradients(
    trace: Trace, layer: str, class_idx: Tensor, score: ClassScore, reshape: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    """Return features of a recorded layer and their gradient for each class, both laid out as ``BKh[wd]``."""

    def grid(tensor: Tensor) -> Tensor:
        laid_out = tensor if reshape is None else reshape(tensor)
        if laid_out.ndim != trace.image.ndim:
            raise ValueError(
                f"the class activation map of layer '{layer}' needs features B C and {trace.image.ndim - 2} spatial "
                f"dimensions, got {tuple(laid_out.shape)}; pass reshape to lay out tokens"
            )
        return laid_out

    features = grid(recorded(trace, layer))
    name = f"layer '{layer}'"
    found = class_gradients(trace.logits, trace.sources[layer], class_idx, score, trace.image.ndim, name)
    return features, [grid(trace.own(layer, gradient)) for gradient in found]
