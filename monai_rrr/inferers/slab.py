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

"""Heatmaps of a whole brain from overlapping slabs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor, nn

from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.pooling import modality_shares
from monai_rrr.attribution.trace import record

__all__ = ["SlabHeatmapInferer"]


class SlabHeatmapInferer(Inferer):
    """Fused and, on demand, per-modality heatmaps of a multimodal network, stitched from slabs.

    Slabs keep the full in-plane extent and overlap along the last axis; they are blended by a Gaussian
    (MONAI's ``SlidingWindowInferer``). With ``flips`` the maps of mirrored slabs are mirrored back and averaged. The
    network is put into evaluation mode for the call, and each of its modules back into the mode it was in.

    Args:
        depth: slices of a slab.
        overlap: share of a slab that the next one repeats.
        flips: axes (0 to 2) of test-time mirroring; all combinations of them are averaged. Empty: none.
        per_modality: also return the map of every modality.
        slabs_per_batch: slabs per forward pass.
        attribute: the class maps, in logits.
        reliability: layer that holds the weights of the modalities.

    Shape:
        - inputs: ``B M H W D``; network: an image and ``present`` in, class maps ``B M K h w D`` on the layer.
        - output: ``B K H W D`` in [0, 1], or ``B (1+M) K H W D`` with the fused map first; 0 outside the brain, and for
          absent modalities.

    Raises:
        ValueError: When a map is not finite: no mask must ever be made of it.

    Example:
        >>> from monai_rrr.networks import MultimodalCAMNet
        >>> SlabHeatmapInferer(depth=4)(torch.rand(1, 4, 8, 8, 6), MultimodalCAMNet(channels=(4, 8))).shape
        torch.Size([1, 3, 8, 8, 6])
    """

    def __init__(
        self,
        depth: int,
        overlap: float = 0.5,
        flips: Sequence[int] = (),
        per_modality: bool = False,
        slabs_per_batch: int = 4,
        attribute: ClassMap | None = None,
        reliability: str = "reliability",
    ) -> None:
        super().__init__()
        if not set(flips) <= {0, 1, 2}:
            raise ValueError(f"flips must be spatial axes 0 to 2, got {tuple(flips)}")
        self.windows = SlidingWindowInferer((-1, -1, depth), slabs_per_batch, overlap, mode="gaussian")
        self.mirrors = [axes for count in range(len(flips) + 1) for axes in combinations(flips, count)]
        self.per_modality = per_modality
        self.attribute = attribute or ClassMap()
        self.reliability = reliability

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return heatmaps on the grid of ``inputs``; ``present`` (``B M``) as keyword, default: not 0 everywhere."""
        image = torch.as_tensor(inputs)
        if hasattr(inputs, "as_tensor"):
            image = inputs.as_tensor()
        present = kwargs.get("present")
        available = (image != 0).flatten(2).any(2) if present is None else present.to(image.device)
        modes = {module: module.training for module in network.modules()}
        network.eval()
        try:
            with torch.no_grad():
                maps = [self._mirrored(image, network, available, axes) for axes in self.mirrors]
        finally:
            for module, training in modes.items():
                module.training = training
        mean: Tensor = torch.stack(maps).mean(0)
        if not torch.isfinite(mean).all():
            raise ValueError(f"heatmaps have {int((~torch.isfinite(mean)).sum())} values that are not finite")
        mean = mean * (image != 0).any(1, keepdim=True)
        mean = mean.unflatten(1, (1 + image.shape[1], -1))
        return mean if self.per_modality else mean[:, 0]

    def _mirrored(self, image: Tensor, network: nn.Module, available: Tensor, axes: tuple[int, ...]) -> Tensor:
        dims = [2 + axis for axis in axes]
        row = 0

        def predict(window: Tensor) -> Tensor:
            # one image at a time, so that all slabs of a call have the modalities of that image
            return self._maps(window, network, available[row].expand(len(window), -1))

        parts = []
        for row in range(len(image)):
            parts.append(self.windows(image[row : row + 1].flip(dims), predict))
        return torch.cat([torch.as_tensor(p) for p in parts]).flip(dims)

    def _maps(self, image: Tensor, network: nn.Module, available: Tensor) -> Tensor:
        trace = record(network, image, (*self.attribute.layers, self.reliability), present=available)
        maps = torch.sigmoid(self.attribute(trace).float()) * available[:, :, None, None, None, None]
        share = modality_shares(trace.features[self.reliability].float(), available)
        fused = (maps * share[:, :, :, None, None, None]).sum(1, keepdim=True)
        every = torch.cat([fused, maps], 1).flatten(1, 2)
        if every.shape[2:] != image.shape[2:]:
            every = F.interpolate(every, size=image.shape[2:], mode="trilinear", align_corners=False)
        return every
