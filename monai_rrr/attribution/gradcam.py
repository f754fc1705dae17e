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

from monai_rrr.attribution.attributor import class_columns, recorded, single_precision
from monai_rrr.attribution.score import ClassScore, volume_score
from monai_rrr.attribution.trace import Trace

__all__ = ["GradCAM"]

_HALF_SCALE = 1024.0  # lifts gradients of float16 logits above its smallest number; a power of two changes no digit


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
        features = self._grid(recorded(trace, self.layer), trace.image.ndim)
        heatmaps = []
        with torch.autocast(features.device.type, enabled=False):
            features = single_precision(features)
            for gradient in self._gradients(trace, class_idx):
                gradient = self._grid(gradient, trace.image.ndim)
                weights = gradient.flatten(2).mean(2)
                heatmaps.append(torch.einsum("bk...,bk->b...", features, weights))
            heatmap = torch.stack(heatmaps, dim=1)
        return heatmap.relu() if self.relu else heatmap

    def _gradients(self, trace: Trace, class_idx: Tensor) -> list[Tensor]:
        source = trace.sources[self.layer]
        if not (source.requires_grad and trace.logits.requires_grad):
            raise ValueError(
                f"layer '{self.layer}' or the logits carry no gradient: record the trace with gradients enabled, "
                "with trainable parameters or an image that requires grad"
            )
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            logits = single_precision(trace.logits)
            if logits.ndim == 3 and trace.image.ndim > 3:
                logits = logits.sum(1)
            scale = _HALF_SCALE if source.dtype == torch.float16 else 1.0
            totals = self.score(logits, class_columns(class_idx, logits.shape[0])).sum(0) * scale
            gradients = [
                torch.autograd.grad(total, source, create_graph=create_graph, retain_graph=True, allow_unused=True)[0]
                for total in totals
            ]
        if any(gradient is None for gradient in gradients):
            raise ValueError(f"the logits do not depend on layer '{self.layer}'")
        return [single_precision(trace.own(self.layer, gradient)) / scale for gradient in gradients]

    def _grid(self, features: Tensor, ndim: int) -> Tensor:
        grid = features if self.reshape is None else self.reshape(features)
        if grid.ndim != ndim:
            raise ValueError(
                f"Grad-CAM of layer '{self.layer}' needs features B C and {ndim - 2} spatial dimensions, "
                f"got {tuple(grid.shape)}; pass reshape to lay out tokens"
            )
        return grid
