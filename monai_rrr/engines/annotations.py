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

"""Make a batch for terms that compare annotators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ignite import distributed as idist
from torch import Tensor

from monai_rrr.transforms.truncated_distance import truncated_distance
from monai_rrr.transforms.vote_share import vote_share
from monai_rrr.utils.seeds import derive_seed

__all__ = ["PrepareAnnotations"]


@dataclass(frozen=True)
class PrepareAnnotations:
    """``prepare_batch`` that keeps the dictionary and adds what all terms on annotators share.

    Works on the device and never waits for it, so that small cohorts can stay there as whole volumes. Added are
    ``consensus`` ``BCDHW``, unless the batch has one already (:class:`~monai_rrr.handlers.ConsensusUpdate` writes it),
    then its label ``consensus_label`` ``BDHW``, the signed distances of its regions ``signed_distance`` in mm, and
    ``voxel`` ``n 4`` with ``voxel_stratum`` ``n``: the voxels that prototype terms look at, half of them where someone
    deviates from the consensus, a quarter near a boundary, a quarter elsewhere. Where a stratum has too few, the rest
    counts for nothing. Drawn as a function of seed, iteration and process.

    Args:
        num_classes: ``C``, classes that exclude each other, 0 is the background.
        spacing: mm per voxel.
        regions: classes of each nested region, from the outermost.
        limit: mm, distances are clipped there.
        boundary: mm, how near is near.
        voxels: ``n``.
        seed: of the draw.
        prepare: what makes the batch before, such as :class:`~monai_rrr.engines.views.PrepareViews`, which doubles it.
            Default: it is taken as it is.

    Shape:
        - batch: ``image`` ``BMDHW``, ``annotations`` ``BRDHW`` whole numbers, negative where missing, ``annotated``
          ``BR`` boolean; default: who drew anything.

    Raises:
        ValueError: When annotations are missing or do not fit.

    Example:
        >>> batch = {"image": torch.zeros(1, 4, 6, 6, 6), "annotations": torch.zeros(1, 2, 6, 6, 6).long()}
        >>> batch["annotations"][:, 0, 2:4, 2:4, 2:4] = 3
        >>> sorted(set(PrepareAnnotations(voxels=8)(batch, "cpu", False)) - set(batch))
        ['annotated', 'consensus', 'consensus_label', 'samples', 'signed_distance', 'voxel', 'voxel_stratum']
    """

    num_classes: int = 4
    spacing: Sequence[float] = (1.0, 1.0, 1.0)
    regions: Sequence[Sequence[int]] = ((1, 2, 3), (1, 3), (3,))
    limit: float = 8.0
    boundary: float = 4.0
    voxels: int = 4096
    seed: int = 0
    prepare: Callable[..., Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.voxels < 4 or self.boundary > self.limit:
            raise ValueError(
                f"expected at least 4 voxels and boundary <= limit, got {self.voxels}, {self.boundary} and {self.limit}"
            )

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the batch on the device; ``iteration`` in ``batchdata`` makes the draw reproducible."""
        if self.prepare is not None:
            batchdata = self.prepare(batchdata, device, non_blocking, **kwargs)
        batch = {
            key: value.as_subclass(Tensor).to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for key, value in batchdata.items()
        }
        if "annotations" not in batch:
            raise ValueError(f"expected 'annotations', got a batch with {sorted(map(str, batch))}")
        drawn, image = batch["annotations"], batch["image"]
        if drawn.ndim != 5 or drawn.shape[0] != image.shape[0] or drawn.shape[2:] != image.shape[2:]:
            raise ValueError(f"annotations {tuple(drawn.shape)} do not match image {tuple(image.shape)}")
        if not drawn.dtype.is_signed:
            drawn = drawn.short()
        if "annotated" not in batch:
            batch["annotated"] = (drawn >= 0).flatten(2).any(2)
        if "consensus" not in batch:
            batch["consensus"] = vote_share(drawn, batch["annotated"], self.num_classes)
        # who did not draw the case counts for nothing, whatever stands there
        batch["annotations"] = drawn = torch.where(batch["annotated"].bool()[:, :, None, None, None], drawn, -1)
        label = batch["consensus"].argmax(1)
        batch["consensus_label"] = label
        inside = torch.stack([_is_one_of(label, classes) for classes in self.regions], 1)
        batch["signed_distance"] = truncated_distance(inside, self.spacing, self.limit)
        batch["voxel"], batch["voxel_stratum"] = self._draw(batch)
        batch["samples"] = {}
        return batch

    def _draw(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        drawn, label = batch["annotations"], batch["consensus_label"]
        known = (drawn >= 0).any(1)
        deviation = ((drawn >= 0) & (drawn != label[:, None])).any(1)
        near = (batch["signed_distance"].abs() <= self.boundary).any(1) & known & ~deviation
        rest = known & ~deviation & ~near
        quarter = self.voxels // 4
        device = label.device
        seed = derive_seed(self.seed, int(batch.get("iteration", 0)), idist.get_rank())
        generator = torch.Generator(device).manual_seed(seed)
        random = torch.rand(label.shape, generator=generator, device=device).flatten()
        index, strata = [], []
        for stratum, (mask, count) in enumerate(
            ((deviation, self.voxels - 2 * quarter), (near, quarter), (rest, quarter))
        ):
            value, place = torch.where(mask.flatten(), random, -1.0).topk(min(count, random.numel()))
            index.append(place)
            strata.append(torch.where(value >= 0, stratum, -1))
        return torch.stack(torch.unravel_index(torch.cat(index), label.shape), 1), torch.cat(strata)


def _is_one_of(label: Tensor, classes: Sequence[int]) -> Tensor:
    """Where a label is one of several classes."""
    return torch.stack([label == c for c in classes]).any(0)
