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

"""Gradients of class scores that can be differentiated again."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_rrr.attribution.attributor import class_columns, single_precision
from monai_rrr.attribution.score import ClassScore

__all__ = ["class_gradients"]

_HALF_SCALE = 1024.0  # lifts gradients of float16 logits above its smallest number; a power of two changes no digit


def class_gradients(
    logits: Tensor, source: Tensor, class_idx: Tensor, score: ClassScore, image_ndim: int, name: str
) -> list[Tensor]:
    """Differentiate the score of each class, one backward pass per class over one graph.

    The result carries gradient when gradients are enabled; the ``.grad`` of no tensor is touched.

    Args:
        logits: ``BK``, ``BMK`` of several heads (summed over the heads), or ``BKH[WD]`` of a segmentation network.
        source: what to differentiate by, in the graph of the logits.
        class_idx: ``B`` or ``BT``.
        score: what a class scores.
        image_ndim: dimensions of the image, which tell heads from voxels.
        name: of the source, for errors.

    Returns:
        ``T`` tensors of the shape of ``source``, at least float32.

    Raises:
        ValueError: When source or logits carry no gradient, or the logits do not depend on the source.
    """
    if not (source.requires_grad and logits.requires_grad):
        raise ValueError(
            f"{name} or the logits carry no gradient: record the trace with gradients enabled, "
            "with trainable parameters or an image that requires grad"
        )
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(source.device.type, enabled=False):
        logits = single_precision(logits)
        if logits.ndim == 3 and image_ndim > 3:
            logits = logits.sum(1)
        scale = _HALF_SCALE if source.dtype == torch.float16 else 1.0
        totals = score(logits, class_columns(class_idx, logits.shape[0])).sum(0) * scale
        found = [
            torch.autograd.grad(total, source, create_graph=create_graph, retain_graph=True, allow_unused=True)[0]
            for total in totals
        ]
        gradients = [single_precision(gradient) / scale for gradient in found if gradient is not None]
    if len(gradients) != len(found):
        raise ValueError(f"the logits do not depend on {name}")
    return gradients
