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

"""Class activation maps in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monai_rrr.attribution.attributor import check_classes, class_columns, recorded, single_precision
from monai_rrr.attribution.trace import Trace, unwrapped

__all__ = ["CAM"]


@dataclass(frozen=True)
class CAM:
    r"""Class activation map of a linear head on globally averaged features.

    Signed, larger is more evidence. Its sum over the voxels is the logit without its bias, and it equals Grad-CAM
    without ReLU of the same layer. Costs one einsum for all classes, needs no backward pass, and is differentiable with
    respect to the features and to the weight of the head.

    .. math:: H_c(p) = \frac{1}{N} \sum_k W_{ck} A_k(p), \qquad \sum_p H_c(p) + b_c = z_c

    Args:
        layer: name of the layer whose output is averaged, ``BKh[wd]``.
        head: name of the head, a ``Linear`` or a convolution of kernel size 1 without groups, with K inputs.
        detach_weights: take the weight of the head as a constant, so that a loss on the map trains the features only
            (the literal reading of Eq. 1 of GAIN, arXiv 1802.10171).

    Shape:
        - class_idx: ``B`` or ``BT``. When the features hold several entries per sample in their batch axis, each row
          counts for all of its entries.
        - output: ``BTh[wd]``, on the grid of the layer, at least float32.

    Raises:
        ValueError: When layer or head don't fit, or a class index is out of range.
        TypeError: When the head is of another kind, or ``class_idx`` is no long tensor.

    Reference:
        B. Zhou et al., Learning deep features for discriminative localization, CVPR 2016, Eq. 2. Differs from it in:
        the factor 1/N, with which heatmaps of different resolution have equal sums.

    Example:
        >>> from monai_rrr.attribution.trace import record
        >>> network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3, False))
        >>> trace = record(network, torch.rand(2, 1, 6, 6, 6), ["0"])
        >>> heatmap = CAM("0", head="3")(trace, torch.tensor([[0, 2], [0, 1]]))
        >>> heatmap.shape
        torch.Size([2, 2, 4, 4, 4])
        >>> bool(heatmap[1, 1].sum().isclose(trace.logits[1, 1]))
        True
    """

    layer: str
    head: str
    detach_weights: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer that must be recorded."""
        return (self.layer,)

    def __call__(self, trace: Trace, class_idx: Tensor) -> Tensor:
        """Return the heatmaps of the requested classes."""
        features = recorded(trace, self.layer)
        weight = _head_weight(trace.network, self.head)
        if features.ndim < 3 or features.shape[1] != weight.shape[1]:
            raise ValueError(
                f"head '{self.head}' expects features of shape B {weight.shape[1]} h [w d], "
                f"got {tuple(features.shape)} from layer '{self.layer}'"
            )
        columns = class_columns(class_idx, features.shape[0])
        check_classes(columns, weight.shape[0])
        with torch.autocast(features.device.type, enabled=False):
            rows = single_precision(weight.detach() if self.detach_weights else weight)[columns]
            return torch.einsum("bk...,btk->bt...", single_precision(features), rows) / features[0, 0].numel()


def _head_weight(network: nn.Module, name: str) -> Tensor:
    try:
        head = unwrapped(network).get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"{type(unwrapped(network)).__name__} has no layer '{name}' to take as head") from error
    if isinstance(head, nn.Linear):
        return head.weight
    if isinstance(head, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if head.groups == 1 and all(size == 1 for size in head.kernel_size):
            return head.weight.flatten(1)
        raise ValueError(
            f"head '{name}' must have kernel size 1 and 1 group, got size {head.kernel_size} and {head.groups} groups"
        )
    raise TypeError(f"head '{name}' must be a Linear or a convolution of kernel size 1, got {type(head).__name__}")
