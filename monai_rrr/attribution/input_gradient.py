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

"""Input times gradient, with normalization statistics as constants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_rrr.attribution.attributor import recorded
from monai_rrr.attribution.gradient import class_gradients
from monai_rrr.attribution.rules import BackwardRule, constant_statistics
from monai_rrr.attribution.score import ClassScore, volume_score
from monai_rrr.attribution.trace import INPUT, Trace

__all__ = ["InputTimesGradient"]


@dataclass(frozen=True)
class InputTimesGradient:
    r"""The image times the gradient of the class score, voxel by voxel, at the resolution of the image.

    Signed, larger is more evidence. Needs double backward when a loss is put on it. Instance, group and layer
    normalization do not react to the scale of their input, so through them the plain product sums to about zero. With
    ``constant="scale"`` (the preset ``ixg_ln`` of the project's method cards) their standard deviations count as
    constants in the explanation, and in a network of piecewise linear layers without bias the sum over all voxels and
    modalities is the score again. The gradient of a loss on the heatmap still knows how they depend on the weights.

    .. math:: H_c(m, p) = x_m(p)\, \frac{\partial s_c}{\partial x_m(p)}

    Args:
        constant: what counts as constant: ``"scale"`` (standard deviations), ``"statistics"`` (means as well: cheaper,
            but the sum is then off by what the means carry), or ``"none"`` (the plain product, which needs no forward
            pass beyond that of the trace; the others take one).
        per_modality: keep the modality axis instead of summing over it.
        score: what a class scores, see :mod:`monai_rrr.attribution.score`.

    Shape:
        - class_idx: ``B`` or ``BT``. Logits ``BMK`` of several heads are summed over the heads.
        - output: ``BTH[WD]``, or ``BTMH[WD]`` with ``per_modality``; at least float32.

    Raises:
        ValueError: When ``constant`` is unknown, the image was not recorded (``constant="none"``), or the logits do not
            depend on it.

    Note:
        The card of the method names detached means beside detached standard deviations; measured, only the latter keep
        the sum, because a constant mean acts as a bias. A second pass draws dropout masks of its own, the same each
        time; the state of the random number generators stays as it was.

    Example:
        >>> from torch import nn
        >>> from monai_rrr.attribution.trace import record
        >>> block = [nn.Conv3d(2, 4, 3, bias=False), nn.InstanceNorm3d(4), nn.ReLU()]
        >>> network = nn.Sequential(*block, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> trace = record(network, torch.rand(1, 2, 6, 6, 6), ())
        >>> heatmap = InputTimesGradient(per_modality=True)(trace, torch.tensor([1]))
        >>> heatmap.shape
        torch.Size([1, 1, 2, 6, 6, 6])
        >>> bool(heatmap.sum().isclose(trace.logits[0, 1], atol=1e-5))
        True
    """

    constant: str = "scale"
    per_modality: bool = False
    score: ClassScore = volume_score

    def __post_init__(self) -> None:
        if self.constant not in ("none", "scale", "statistics"):
            raise ValueError(f"constant must be none, scale or statistics, got {self.constant!r}")

    @property
    def layers(self) -> tuple[str, ...]:
        """The image, when the gradient of the recorded pass is taken."""
        return (INPUT,) if self.constant == "none" else ()

    def __call__(self, trace: Trace, class_idx: Tensor) -> Tensor:
        """Return the heatmaps of the requested classes."""
        if self.constant == "none":
            image = recorded(trace, INPUT)
            found = class_gradients(
                trace.logits, trace.sources[INPUT], class_idx, self.score, trace.image.ndim, "the image"
            )
            gradients = [trace.own(INPUT, gradient) for gradient in found]
        else:
            image, gradients = input_gradients(
                trace, class_idx, constant_statistics(mean=self.constant == "statistics"), self.score
            )
        heatmap = torch.stack([gradient * image.detach() for gradient in gradients], dim=1)
        return heatmap if self.per_modality else heatmap.sum(2)


def input_gradients(
    trace: Trace, class_idx: Tensor, rule: BackwardRule, score: ClassScore
) -> tuple[Tensor, list[Tensor]]:
    """Call the network of a trace again under a rule, and return the image and the score gradients by it.

    Normalization statistics do not move, and the random number generators are left as they were found.

    Args:
        trace: says what to call.
        class_idx: ``B`` or ``BT``.
        rule: how to go backward.
        score: what a class scores.

    Returns:
        the image that was passed, and a gradient ``BMH[WD]`` for each class.
    """
    device = trace.image.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad(), rule:
        image = trace.image.detach().clone().requires_grad_(True)
        logits = trace.rerun(image, update_statistics=False).logits
    with rule.applied():
        return image, class_gradients(logits, image, class_idx, score, image.ndim, "the image")
