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

"""Class maps of a network that pools them into its own logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from monai_rrr.attribution.attributor import check_classes, class_columns
from monai_rrr.attribution.trace import Trace

__all__ = ["ClassMap"]


@dataclass(frozen=True)
class ClassMap:
    r"""The output of a dense head, taken as it is: the class activation map of a fully convolutional classifier.

    Where the class score is a pooling of the maps ``s_c`` of a 1x1x1 convolution,
    :math:`s_c(x) = \sum_k W_{ck} A_k(x) + b_c`, these maps are the closed-form CAM at every voxel, for all classes at
    once, and cost nothing beyond the forward pass. In logits, unnormalized; larger is more evidence. With classes, an
    :class:`~monai_rrr.attribution.Attributor`; without, all classes in the layout of the layer.

    Args:
        layer: layer whose output holds the maps.

    Shape:
        - class_idx: ``B`` or ``BT``. Default: all classes.
        - output with classes: ``B T h w [d]``, or ``B T M h w [d]`` with one map per modality.
        - output without: as recorded, ``B K h w [d]``, or ``B M K h w [d]``.

    Example:
        >>> ClassMap("class_maps").layers
        ('class_maps',)
    """

    layer: str = "class_maps"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return (self.layer,)

    def __call__(self, trace: Trace, class_idx: Tensor | None = None) -> Tensor:
        """Return the recorded maps."""
        maps = trace.features[self.layer]
        if class_idx is None:
            return maps
        if maps.ndim > trace.image.ndim:
            maps = maps.transpose(1, 2)
        columns = class_columns(class_idx, len(maps))
        check_classes(columns, maps.shape[1])
        index = columns.reshape(*columns.shape, *(1,) * (maps.ndim - 2)).expand(-1, -1, *maps.shape[2:])
        return maps.gather(1, index)
