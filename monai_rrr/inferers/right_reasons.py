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

"""Heatmaps, class scores, the consensus and every annotator's version of it, for a whole brain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_rrr.attribution.pooling import modality_shares
from monai_rrr.attribution.trace import record
from monai_rrr.inferers.modality_maps import modality_maps
from monai_rrr.inferers.stitch import SlabStitcher, slab_inputs
from monai_rrr.utils.checks import check_heatmaps

__all__ = ["RightReasonsInferer"]


class RightReasonsInferer(Inferer):
    """All that :class:`~monai_rrr.networks.RightReasonsNet` has to say of whole images, by one pass over their slabs.

    Slabs, overlap, mirroring and shortage of memory are those of :class:`~monai_rrr.inferers.SlabHeatmapInferer`.

    Args:
        depth: slices of a slab.
        overlap: share of a slab that the next one repeats.
        flips: axes (0 to 2) of test-time mirroring; all combinations of them are averaged. Empty: none.
        per_modality: also return the heatmap of every modality.
        slabs_per_batch: slabs per forward pass.

    Shape:
        - inputs: ``B M H W D``, 0 outside the brain; network: an image and ``present`` in, whatever it returns; layers
          ``cam.class_maps``, ``cam.reliability``, ``class_scores``, ``consensus`` and ``annotator_logits``.
        - output: a dictionary: ``heatmap`` ``B K H W D`` or ``B (1+M) K H W D`` with the fused one first, in [0, 1];
          ``class_score`` ``B K``, the probability of the region in the slab where it is largest, averaged over the
          modalities by reliability; ``annotators`` ``B 1+R C H W D``, probabilities, the consensus first, background
          for certain outside the brain.

    Raises:
        ValueError: When ``flips`` names no spatial axis.
        InferenceError: ``heatmap-not-finite``; ``out-of-memory``.

    Example:
        >>> from monai_rrr.networks import RightReasonsNet
        >>> found = RightReasonsInferer(depth=4)(torch.rand(1, 4, 8, 8, 8), RightReasonsNet())
        >>> {name: tuple(value.shape) for name, value in found.items()}
        {'heatmap': (1, 3, 8, 8, 8), 'class_score': (1, 3), 'annotators': (1, 7, 4, 8, 8, 8)}
    """

    def __init__(
        self,
        depth: int,
        overlap: float = 0.5,
        flips: Sequence[int] = (),
        per_modality: bool = False,
        slabs_per_batch: int = 4,
    ) -> None:
        super().__init__()
        self.stitch = SlabStitcher(depth, overlap, flips, slabs_per_batch)
        self.per_modality = per_modality

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the maps on the grid of ``inputs``.

        Keywords: ``present`` (``B M``), default: modalities that are not 0 everywhere; ``case_id`` (``B`` names), for
        errors.
        """
        image, available, cases = slab_inputs(inputs, kwargs)
        stitched = self.stitch(image, network, available, self._maps, None if len(cases) > 1 else cases[0])
        for case_id, maps in zip(cases, stitched, strict=True):
            check_heatmaps(maps, case_id=case_id)
        unwrapped = getattr(network, "module", network)
        classes = unwrapped.cam.num_classes
        scores, heatmaps, annotators = stitched.split_with_sizes(
            [classes, (1 + image.shape[1]) * classes, (1 + len(unwrapped.annotators)) * unwrapped.num_classes], 1
        )
        brain = (image != 0).any(1)
        every = heatmaps.unflatten(1, (-1, classes)) * brain[:, None, None]
        probability = annotators.unflatten(1, (-1, unwrapped.num_classes))
        background = torch.zeros_like(probability)
        background[:, :, 0] = 1
        return {
            "heatmap": every if self.per_modality else every[:, 0],
            "class_score": scores.amax((2, 3, 4)),
            "annotators": torch.where(brain[:, None, None], probability, background),
        }

    def _maps(self, image: Tensor, network: nn.Module, available: Tensor) -> Tensor:
        layers = ("cam.class_maps", "cam.reliability", "class_scores", "consensus", "annotator_logits")
        found = record(network, image, layers, present=available).features
        logits = found["class_scores"].float()
        share = modality_shares(found["cam.reliability"].float(), available)
        every = modality_maps(found["cam.class_maps"].float(), logits, share, available, image.shape[2:])
        scores = (logits.sigmoid() * share).sum(1)[:, :, None, None, None].expand(-1, -1, *image.shape[2:])
        drawn = torch.cat([found["consensus"][:, None], found["annotator_logits"]], 1).float().softmax(2)
        return torch.cat([scores, every, drawn.flatten(1, 2)], 1)
