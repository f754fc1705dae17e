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

"""Maps of a whole brain from overlapping slabs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from monai_rrr.attribution.exclusive import evaluating
from monai_rrr.inferers.memory import is_out_of_memory, out_of_memory

__all__ = ["SlabStitcher", "slab_inputs"]


class SlabStitcher:
    """Call a network slab by slab, and put what it shows together.

    How it treats slabs, mirroring, the mode of the network and shortage of memory is told by
    :class:`~monai_rrr.inferers.SlabHeatmapInferer`.

    Args:
        depth: slices of a slab.
        overlap: share of a slab that the next one repeats.
        flips: axes (0 to 2) of test-time mirroring; all combinations of them are averaged. Empty: none.
        slabs_per_batch: slabs per forward pass.

    Raises:
        ValueError: When ``flips`` names no spatial axis.
    """

    def __init__(self, depth: int, overlap: float, flips: Sequence[int], slabs_per_batch: int) -> None:
        if not set(flips) <= {0, 1, 2}:
            raise ValueError(f"flips must be spatial axes 0 to 2, got {tuple(flips)}")
        self.depth, self.overlap = depth, overlap
        self.windows = self._sliding(slabs_per_batch)
        self.mirrors = [axes for count in range(len(flips) + 1) for axes in combinations(flips, count)]

    def __call__(
        self,
        image: Tensor,
        network: nn.Module,
        available: Tensor,
        maps: Callable[[Tensor, nn.Module, Tensor], Tensor],
        case_id: str | None = None,
    ) -> Tensor:
        """Return the maps of whole images, ``B C H W D``.

        Args:
            image: ``B M H W D``.
            network: put into evaluation mode.
            available: modalities to use, ``B M``.
            maps: of slabs ``N M H W d``, the network and ``available`` ``N M``: their maps ``N C H W d``.
            case_id: for errors.

        Raises:
            InferenceError: ``out-of-memory``, when memory is short even for one slab.
        """
        count = self.windows.sw_batch_size
        with evaluating(network), torch.no_grad():
            for windows in (self.windows, *([self._sliding(1)] if count > 1 else [])):
                try:
                    found = [self._mirrored(image, network, available, maps, axes, windows) for axes in self.mirrors]
                    return torch.stack(found).mean(0)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    logger = logging.getLogger(__name__)
                    logger.warning("memory is short for %d slabs at a time", windows.sw_batch_size)
                # here the failed call holds nothing any more
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        hint = "use a coarser spacing, slabs of less depth (roi_size), no flips or modalities, or another device"
        raise out_of_memory(image.shape, f"slabs at a time: {count}" + (", then 1" if count > 1 else ""), hint, case_id)

    def _sliding(self, slabs_per_batch: int) -> SlidingWindowInferer:
        return SlidingWindowInferer((-1, -1, self.depth), slabs_per_batch, self.overlap, mode="gaussian")

    def _mirrored(
        self,
        image: Tensor,
        network: nn.Module,
        available: Tensor,
        maps: Callable[[Tensor, nn.Module, Tensor], Tensor],
        axes: tuple[int, ...],
        windows: SlidingWindowInferer,
    ) -> Tensor:
        dims = [2 + axis for axis in axes]
        row = 0

        def predict(window: Tensor) -> Tensor:
            # one image at a time, so that all slabs of a call have the modalities of that image
            return maps(window, network, available[row].expand(len(window), -1))

        parts = []
        for row in range(len(image)):
            parts.append(windows(image[row : row + 1].flip(dims), predict))
        return torch.cat([torch.as_tensor(p) for p in parts]).flip(dims)


def slab_inputs(inputs: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor, Sequence[str | None]]:
    """What an inferer is called with: image ``BMHWD`` without metadata, present modalities ``BM``, and case ids.

    Args:
        inputs: image, perhaps with metadata.
        options: ``present``, default: modalities that are not 0 everywhere; ``case_id``, default: unknown.
    """
    image = inputs.as_tensor() if hasattr(inputs, "as_tensor") else torch.as_tensor(inputs)
    present = options.get("present")
    available = (image != 0).flatten(2).any(2) if present is None else present.to(image.device)
    return image, available, options.get("case_id") or [None] * len(image)
