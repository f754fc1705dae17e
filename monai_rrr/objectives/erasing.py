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

"""Soft erasing of parts of an image."""

from __future__ import annotations

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor

__all__ = ["FILLS", "blend", "soft_mask"]

FILLS = ("blur", "mean", "zero")


def soft_mask(heatmap: Tensor, threshold: Tensor | float, steepness: float) -> Tensor:
    r"""Turn a heatmap into a mask in (0, 1): :math:`T = \sigma(\omega (A - \sigma_0))`, as GAIN and ATCON do."""
    return torch.sigmoid(steepness * (heatmap - threshold))


def blend(image: Tensor, keep: Tensor, brain: Tensor, fill: str = "blur", sigma: float = 4.0) -> Tensor:
    """Keep an image where a mask is 1, fill it where it is 0; the background stays as it is.

    Args:
        image: ``BMH[WD]``, 0 outside the brain.
        keep: ``B1H[WD]`` in [0, 1], the same for all modalities.
        brain: ``B1H[WD]``, 1 inside.
        fill: ``"blur"`` (the image smoothed inside the brain), ``"mean"`` (of the modality inside the brain) or
            ``"zero"`` (in standardized MRI this is mean tissue, not absence).
        sigma: of the blur, in voxels.

    Example:
        >>> image, brain = torch.tensor([[[4.0, 2.0, 0.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]])
        >>> blend(image, torch.tensor([[[1.0, 0.0, 0.0]]]), brain, "mean")
        tensor([[[4., 3., 0.]]])
    """
    if fill == "zero":
        filled = torch.zeros_like(image)
    elif fill == "mean":
        dims = tuple(range(2, image.ndim))
        inside = brain.sum(dims, keepdim=True).clamp(min=1)
        filled = ((image * brain).sum(dims, keepdim=True) / inside).expand_as(image)
    else:
        kernel = [gaussian_1d(torch.tensor(sigma, device=image.device), truncated=2.0)] * (image.ndim - 2)
        # where little brain is near, dividing by its share keeps the level of the tissue
        filled = separable_filtering(image * brain, kernel) / separable_filtering(brain, kernel).clamp(min=1e-3)
    return torch.where(brain > 0, image * keep + filled.to(image.dtype) * (1 - keep), image)
