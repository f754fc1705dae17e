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
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.pooling import modality_shares
from monai_rrr.attribution.trace import record
from monai_rrr.inferers.modality_maps import modality_maps
from monai_rrr.inferers.stitch import SlabStitcher, slab_inputs
from monai_rrr.utils.checks import check_heatmaps
from monai_rrr.utils.enums import MODALITIES

__all__ = ["SlabHeatmapInferer"]


class SlabHeatmapInferer(Inferer):
    """Fused and, on demand, per-modality heatmaps of a multimodal network, stitched from slabs.

    Slabs keep the full in-plane extent and overlap along the last axis; they are blended by a Gaussian
    (MONAI's ``SlidingWindowInferer``). With ``flips`` the maps of mirrored slabs are mirrored back and averaged. The
    network is put into evaluation mode for the call, and each of its modules back into the mode it was in; threads that
    share a network take turns. When memory is short, the call is tried once more, slab by slab.

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
        InferenceError: ``heatmap-not-finite``, when logits or maps are not finite (a sigmoid would hide infinite ones);
            ``out-of-memory``, when memory is short even for one slab.

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
        self.stitch = SlabStitcher(depth, overlap, flips, slabs_per_batch)
        self.per_modality = per_modality
        self.attribute = attribute or ClassMap()
        self.reliability = reliability

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return heatmaps on the grid of ``inputs``.

        Keywords: ``present`` (``B M``), default: modalities that are not 0 everywhere; ``case_id`` (``B`` names), for
        errors.
        """
        image, available, cases = slab_inputs(inputs, kwargs)
        mean = self.stitch(image, network, available, self._maps, None if len(cases) > 1 else cases[0])
        every: Tensor = mean.unflatten(1, (1 + image.shape[1], -1))
        if not torch.isfinite(every).all():
            for case_id, maps in zip(cases, every, strict=True):
                check_heatmaps(maps, case_id=case_id, modalities=getattr(network, "modalities", MODALITIES))
        every = every * (image != 0).any(1)[:, None, None]
        return every if self.per_modality else every[:, 0]

    def _maps(self, image: Tensor, network: nn.Module, available: Tensor) -> Tensor:
        trace = record(network, image, (*self.attribute.layers, self.reliability), present=available)
        share = modality_shares(trace.features[self.reliability].float(), available)
        return modality_maps(self.attribute(trace).float(), trace.logits, share, available, image.shape[2:])
