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

"""Integrated gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from monai_rrr.attribution.gradient import class_gradients
from monai_rrr.attribution.score import ClassScore, volume_score
from monai_rrr.attribution.trace import Trace, record, unwrapped

__all__ = ["IntegratedGradients"]


@dataclass(frozen=True)
class IntegratedGradients:
    r"""Mean gradient of the class score on the way from a baseline to the image, times the way.

    Signed, larger is more evidence. With enough steps the sum over all voxels and modalities is the score of the image
    minus that of the baseline, in any network, which makes it the reference for cheaper heatmaps.

    .. math:: H_c(m, p) = (x - x_0)_m(p)\, \frac{1}{S} \sum_{s=1}^{S}
              \frac{\partial s_c}{\partial x_m(p)} \Big(x_0 + \tfrac{s - 1/2}{S} (x - x_0)\Big)

    Several steps are one forward pass with a longer batch. Memory is that of ``steps_per_pass`` steps: with gradients
    enabled, a pass is computed again when a loss goes backward through the heatmap.

    Args:
        steps: points on the way (midpoint rule).
        steps_per_pass: points in one forward pass.
        baseline: value of every voxel where the way begins. In standardized MRI 0 is mean tissue.
        per_modality: keep the modality axis instead of summing over it.
        score: what a class scores, see :mod:`monai_rrr.attribution.score`.

    Shape:
        - class_idx: ``B`` or ``BT``. Logits ``BMK`` of several heads are summed over the heads.
        - output: ``BTH[WD]``, or ``BTMH[WD]`` with ``per_modality``; at least float32.

    Raises:
        ValueError: When ``steps`` or ``steps_per_pass`` is less than 1.

    Note:
        Batch normalization in training mode mixes the points of a pass: use it in evaluation. Keyword arguments of the
        network with one entry per sample are repeated for each point.

    Reference:
        M. Sundararajan et al., Axiomatic attribution for deep networks, ICML 2017, Eq. 3; midpoints instead of right
        ends.

    Example:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Softplus(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        >>> image = torch.rand(1, 1, 6, 6, 6)
        >>> heatmap = IntegratedGradients(steps=32)(record(network, image, ()), torch.tensor([2]))
        >>> bool(heatmap.sum().isclose((network(image) - network(0 * image))[0, 2], rtol=1e-3))
        True
    """

    steps: int = 16
    steps_per_pass: int = 4
    baseline: float = 0.0
    per_modality: bool = False
    score: ClassScore = volume_score

    def __post_init__(self) -> None:
        if min(self.steps, self.steps_per_pass) < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps} and {self.steps_per_pass} per pass")

    @property
    def layers(self) -> tuple[str, ...]:
        """No layer is needed."""
        return ()

    def __call__(self, trace: Trace, class_idx: Tensor) -> Tensor:
        """Return the heatmaps of the requested classes."""
        image = trace.image.detach()
        shares = (torch.arange(self.steps, device=image.device, dtype=image.dtype) + 0.5) / self.steps
        total = torch.zeros((), device=image.device)
        with torch.random.fork_rng([image.device] if image.device.type == "cuda" else []):
            for part in shares.split(self.steps_per_pass):
                if torch.is_grad_enabled():
                    total = total + checkpoint(self._pass, trace, class_idx, part, use_reentrant=False)
                else:
                    total = total + self._pass(trace, class_idx, part)
        heatmap = total / self.steps * (image - self.baseline).unsqueeze(1)
        return heatmap if self.per_modality else heatmap.sum(2)

    def _pass(self, trace: Trace, class_idx: Tensor, shares: Tensor) -> Tensor:
        """Sum of the gradients at some points, ``BTMH[WD]``."""
        image, count = trace.image.detach(), len(shares)
        way = (image - self.baseline).unsqueeze(1) * shares.view(1, -1, *(1,) * (image.ndim - 1))
        points = (self.baseline + way).flatten(0, 1).requires_grad_(True)
        kwargs: dict[str, Any] = {
            name: value.repeat_interleave(count, 0)
            if isinstance(value, Tensor) and value.ndim and len(value) == len(image)
            else value
            for name, value in trace.forward_kwargs.items()
        }
        create_graph = torch.is_grad_enabled()
        # not the wrapper for several processes, which can't be called while a loss goes backward
        network = unwrapped(trace.network)
        precision = torch.autocast(image.device.type, dtype=trace.autocast, enabled=trace.autocast is not None)
        with precision, torch.enable_grad():
            logits = record(network, points, (), update_statistics=False, **kwargs).logits
        with torch.set_grad_enabled(create_graph):
            gradients = class_gradients(logits, points, class_idx, self.score, image.ndim, "the image")
        total: Tensor = torch.stack(gradients, 1).unflatten(0, (len(image), count)).sum(1)
        return total
