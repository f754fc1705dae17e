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

"""The voxels at which prototypes are compared: few, and most of them where annotators disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_rrr.attribution.trace import Trace

__all__ = ["VoxelSample", "at_voxels", "sampled_voxels"]


@dataclass(frozen=True)
class VoxelSample:
    """``n`` voxels of a batch.

    Attributes:
        embedding: ``n E``, in the graph.
        voxel: ``n 4``, sample of the batch and voxel of the image's grid.
        label: ``n R``, what each annotator drew; negative where missing.
        consensus: ``n``, label of the consensus.
        stratum: ``n``: 0 someone deviates, 1 near a boundary, 2 all agree, -1 counts for nothing.
    """

    embedding: Tensor
    voxel: Tensor
    label: Tensor
    consensus: Tensor
    stratum: Tensor

    @property
    def valid(self) -> Tensor:
        """``n`` boolean."""
        return self.stratum >= 0

    @property
    def observed(self) -> Tensor:
        """``n R`` boolean: who drew the voxel."""
        return (self.label >= 0) & self.valid[:, None]

    @property
    def deviates(self) -> Tensor:
        """``n R`` boolean: who drew something else than the consensus."""
        return self.observed & (self.label != self.consensus[:, None])

    def one_hot(self, num_classes: int) -> Tensor:
        """What each annotator who deviates drew, ``n R C`` boolean."""
        return self.deviates[..., None] & (self.label[..., None] == torch.arange(num_classes, device=self.label.device))

    def agreed(self, num_classes: int) -> Tensor:
        """The label of the consensus where nobody deviates, ``n C`` boolean."""
        alike = self.valid & ~self.deviates.any(1)
        return alike[:, None] & (self.consensus[:, None] == torch.arange(num_classes, device=self.label.device))


def at_voxels(values: Tensor, voxel: Tensor) -> Tensor:
    """Values of ``B ... DHW`` at voxels ``n 4``, as ``n ...``."""
    b, d, h, w = voxel.unbind(1)
    return values.movedim((-3, -2, -1), (1, 2, 3))[b, d, h, w]


def sampled_voxels(trace: Trace, batch: Mapping[str, Any]) -> VoxelSample:
    """Look the drawn voxels up in a trace, once for all terms; kept in ``batch["samples"]``.

    Args:
        trace: with ``embedding`` ``BEdhw`` recorded; where its grid is coarser, the nearest of its voxels is taken.
        batch: as made by :class:`~monai_rrr.engines.annotations.PrepareAnnotations`.

    Raises:
        ValueError: When the batch lacks voxels.
    """
    if "voxel" not in batch or "samples" not in batch:
        raise ValueError("prototype terms need drawn voxels: set prepare_batch to monai_rrr.engines.PrepareAnnotations")
    kept = batch["samples"].get("voxels")
    if kept is not None and kept[0] is trace:
        found: VoxelSample = kept[1]
        return found
    embedding, voxel = trace.features["embedding"], batch["voxel"]
    fine, coarse = trace.image.shape[2:], embedding.shape[2:]
    places = [voxel[:, 0]]
    for axis, (many, few) in enumerate(zip(fine, coarse, strict=True), start=1):
        places.append((voxel[:, axis] * few // many).clamp(max=few - 1))
    sample = VoxelSample(
        embedding=at_voxels(embedding, torch.stack(places, 1)),
        voxel=voxel,
        label=at_voxels(batch["annotations"], voxel),
        consensus=at_voxels(batch["consensus_label"], voxel),
        stratum=batch["voxel_stratum"],
    )
    batch["samples"]["voxels"] = (trace, sample)
    return sample
