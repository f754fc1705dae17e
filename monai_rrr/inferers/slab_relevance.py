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

"""Segmentation, class scores and relevance of every modality, of a whole brain from overlapping slabs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_rrr.attribution.trace import record
from monai_rrr.inferers.stitch import SlabStitcher, slab_inputs
from monai_rrr.utils.checks import check_heatmaps

__all__ = ["SlabRelevanceInferer"]


class SlabRelevanceInferer(Inferer):
    """Segment with a :class:`~monai_rrr.networks.TiedAutoencoder`, and say what it saw where.

    Logits, relevance and class scores of slabs are stitched as those of
    :class:`~monai_rrr.inferers.SlabHeatmapInferer`. Relevance comes in units of segmentation logits: with the offset of
    the class, that of all modalities adds up to the logit, when all are there. What is given to absent modalities by a
    rule that does not look at the image, such as w^2, is left out.

    Args:
        depth: slices of a slab.
        overlap: share of a slab that the next one repeats.
        flips: axes (0 to 2) of test-time mirroring; all combinations of them are averaged. Empty: none.
        per_modality: with ``details``, also return the relevance of every modality.
        details: return a dictionary.
        slabs_per_batch: slabs per forward pass.

    Shape:
        - inputs: ``B M H W D``; network: an image and ``present`` in, whatever it returns; layers
          ``class_logits``, ``segmentation``, ``relevance`` and ``gain``.
        - output: probabilities ``B K H W D``, 0 outside the brain; with ``details`` these as ``heatmap``, and
          ``class_score`` ``B K``: the probability of the class in the slice where it is largest, a slice having the
          scores of its slabs; and ``relevance`` ``B M K H W D``, signed, 0 outside the brain and for absent modalities.

    Raises:
        ValueError: When ``flips`` names no spatial axis.
        InferenceError: ``heatmap-not-finite``, when logits or maps are not finite; ``out-of-memory``.

    Example:
        >>> from monai.networks.nets import UNet
        >>> from monai_rrr.networks import SegmenterClassifier, TiedAutoencoder
        >>> encoder = SegmenterClassifier(UNet(3, 4, 3, channels=(4, 8), strides=(2,)), num_classes=3)
        >>> network = TiedAutoencoder(encoder, num_classes=3)
        >>> SlabRelevanceInferer(depth=4)(torch.rand(1, 4, 8, 8, 6), network).shape
        torch.Size([1, 3, 8, 8, 6])
    """

    def __init__(
        self,
        depth: int,
        overlap: float = 0.5,
        flips: Sequence[int] = (),
        per_modality: bool = False,
        details: bool = False,
        slabs_per_batch: int = 4,
    ) -> None:
        super().__init__()
        self.stitch = SlabStitcher(depth, overlap, flips, slabs_per_batch)
        self.per_modality, self.details = per_modality, details

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Return maps on the grid of ``inputs``.

        Keywords: ``present`` (``B M``), default: modalities that are not 0 everywhere; ``case_id`` (``B`` names), for
        errors.
        """
        image, available, cases = slab_inputs(inputs, kwargs)
        stitched = self.stitch(image, network, available, self._maps, None if len(cases) > 1 else cases[0])
        groups = 2 + image.shape[1] * (self.details and self.per_modality)
        scores, logits, *relevance = stitched.chunk(groups, 1)
        for index, case_id in enumerate(cases):
            check_heatmaps(torch.stack([maps[index] for maps in (logits, *relevance)]), case_id=case_id)
        brain = (image != 0).any(1, keepdim=True)
        heatmap = logits.sigmoid() * brain
        if not self.details:
            return heatmap
        result: dict[str, Tensor] = {"heatmap": heatmap, "class_score": scores.amax((2, 3, 4))}
        if relevance:
            shown = available[:, :, None, None, None, None] * brain.unsqueeze(1)
            result["relevance"] = torch.stack(relevance, 1) * shown
        return result

    def _maps(self, image: Tensor, network: nn.Module, available: Tensor) -> Tensor:
        layers = ("class_logits", "segmentation", "relevance", "gain")
        trace = record(network, image, layers, present=available)
        scores = trace.features["class_logits"].float().sigmoid()
        logits = trace.features["segmentation"]
        groups = [scores[:, :, None, None, None].expand_as(logits), logits]
        if self.details and self.per_modality:
            relevance = trace.features["relevance"] * trace.features["gain"].unsqueeze(2)
            groups.append(relevance.transpose(1, 2).flatten(1, 2))
        return torch.cat(groups, 1)
