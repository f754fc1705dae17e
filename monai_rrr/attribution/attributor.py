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

"""The protocol of attributors and what they share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from monai_rrr.attribution.trace import Trace

__all__ = ["Attributor"]


class Attributor(Protocol):
    """Maps a trace to heatmaps of the requested classes: nothing is kept, nothing of the network is touched.

    Heatmaps are unnormalized, on the grid of the layer or of the image, and larger is more evidence for the class. An
    attributor that keeps the modality axis returns it after that of the classes.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        ...

    def __call__(self, trace: Trace, class_idx: Tensor) -> Tensor:
        """Return ``BTh[wd]``, or ``BTMh[wd]``, for class indices ``B`` or ``BT``."""
        ...


def class_columns(class_idx: Tensor, entries: int) -> Tensor:
    """Return the class indices as ``BT``, each row repeated when the batch axis holds several entries per sample."""
    if class_idx.dtype != torch.long:
        raise TypeError(f"class_idx must hold integers of type torch.long, got {class_idx.dtype}")
    if class_idx.ndim not in (1, 2) or 0 in class_idx.shape or entries % class_idx.shape[0]:
        raise ValueError(f"expected class_idx of shape B or B T for {entries} entries, got {tuple(class_idx.shape)}")
    columns = class_idx.reshape(class_idx.shape[0], -1)
    return columns.repeat_interleave(entries // columns.shape[0], dim=0)


def check_classes(class_idx: Tensor, classes: int) -> None:
    """Raise for indices out of range; on an accelerator nothing is read back, and indexing itself raises."""
    if torch.compiler.is_compiling():
        return
    if class_idx.device.type == "cpu" and (int(class_idx.min()) < 0 or int(class_idx.max()) >= classes):
        raise ValueError(f"class_idx must be in 0..{classes - 1}, got {sorted(set(class_idx.flatten().tolist()))}")


def recorded(trace: Trace, layer: str) -> Tensor:
    """Return the features of a layer."""
    if layer not in trace.features:
        raise ValueError(f"layer '{layer}' was not recorded: expected one of {list(trace.layers)}")
    return trace.features[layer]


def single_precision(tensor: Tensor) -> Tensor:
    """Raise half precision to float32; heatmaps are small numbers."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
