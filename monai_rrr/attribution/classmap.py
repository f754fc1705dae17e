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

from monai_rrr.attribution.trace import Trace

__all__ = ["ClassMap"]


@dataclass(frozen=True)
class ClassMap:
    r"""The output of a dense head, taken as it is: the class activation map of a fully convolutional classifier.

    Where the class score is a pooling of the maps ``s_c`` of a 1x1x1 convolution,
    :math:`s_c(x) = \sum_k W_{ck} A_k(x) + b_c`, these maps are the closed-form CAM at every voxel, for all classes at
    once, and cost nothing beyond the forward pass. In logits, unnormalized; larger is more evidence.

    Args:
        layer: layer whose output holds the maps.

    Shape:
        - output: as recorded, ``B K h w [d]``, or ``B M K h w [d]`` with one map per modality.

    Example:
        >>> ClassMap("class_maps").layers
        ('class_maps',)
    """

    layer: str = "class_maps"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return (self.layer,)

    def __call__(self, trace: Trace) -> Tensor:
        """Return the recorded maps of all classes."""
        return trace.features[self.layer]
