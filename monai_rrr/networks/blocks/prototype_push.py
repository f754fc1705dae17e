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

"""Find the real embeddings that prototypes stand for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NEAREST", "SOURCE", "NearestEmbeddings", "nearest_embeddings", "pushed"]

SOURCE = ("case", "annotator", "label", "consensus", "d", "h", "w")
"""Where an embedding comes from: index of the training case, of the annotator (-1: shared), what was drawn there and
what the consensus says, and the voxel of the case's grid."""

NEAREST = 9
"""Training patches that are kept for each prototype."""


@dataclass(frozen=True)
class NearestEmbeddings:
    """The embeddings most like each prototype, best first.

    Attributes:
        similarity: ``G K N`` cosines; -1 where there are fewer.
        embedding: ``G K N E``.
        source: ``G K N S``; -1 where there are fewer.
    """

    similarity: Tensor
    embedding: Tensor
    source: Tensor


@torch.no_grad()
def nearest_embeddings(
    prototype: Tensor, candidates: Iterable[tuple[Tensor, Tensor, Tensor]], apart: int = 2, per_case: int = 3
) -> NearestEmbeddings:
    """Stream over embeddings and keep, for each prototype, the :data:`NEAREST` most similar ones of its group.

    Neighbors look alike, so that the most similar ones would be one spot: of a case, at most ``per_case`` are kept,
    more than ``apart`` voxels from each other.

    Args:
        prototype: ``G K E``.
        candidates: case by case, embeddings ``n E``, groups ``n``, sources ``n S``.
        apart: voxels.
        per_case: how many.
    """
    groups, slots, width = prototype.shape
    similarity = prototype.new_full((groups, slots, NEAREST), -1.0)
    embedding = prototype.new_zeros(groups, slots, NEAREST, width)
    source = torch.full((groups, slots, NEAREST, len(SOURCE)), -1, device=prototype.device)
    row = torch.arange(groups, device=prototype.device)[:, None]
    for found, group, origin in candidates:
        if not len(found):
            continue
        found, origin = found.to(prototype), origin.to(source)
        cosine = torch.einsum("gke,ne->gkn", prototype, found)
        cosine = torch.where((row == group.to(row))[:, None], cosine, -1.0)
        for _ in range(per_case):
            best, index = cosine.max(2)
            chosen = origin[index]
            chosen[best <= -1] = -1
            both = torch.cat([similarity, best[..., None]], 2)
            similarity, order = both.topk(NEAREST, dim=2)
            embedding = _taken(torch.cat([embedding, found[index][:, :, None]], 2), order)
            source = _taken(torch.cat([source, chosen[:, :, None]], 2), order)
            close = (chosen[:, :, None, 4:] - origin[:, 4:]).abs().amax(-1) <= apart
            cosine = torch.where(close & (chosen[:, :, None, 0] == origin[:, 0]), -1.0, cosine)
    return NearestEmbeddings(similarity, embedding, source)


def _taken(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(2, order[..., None].expand(-1, -1, -1, values.shape[3]))


def pushed(best: NearestEmbeddings, apart: int = 2) -> tuple[Tensor, Tensor]:
    """Choose for each prototype a real embedding of its own; see :meth:`PrototypeBank.push`.

    Within a group the prototype with the most similar candidate chooses first.

    Returns:
        embeddings ``G K E`` and sources ``G K S``; zeros and -1 where no candidate was left.
    """
    groups, slots, _ = best.similarity.shape
    embedding = torch.zeros_like(best.embedding[:, :, 0])
    source = torch.full_like(best.source[:, :, 0], -1)
    similarity, sources = best.similarity.tolist(), best.source.tolist()
    for g in range(groups):
        taken: list[list[int]] = []
        for k in sorted(range(slots), key=lambda k: -similarity[g][k][0]):
            for n in range(NEAREST):
                place = sources[g][k][n]
                if place[0] >= 0 and not any(_near(place, other, apart) for other in taken):
                    taken.append(place)
                    embedding[g, k], source[g, k] = best.embedding[g, k, n], best.source[g, k, n]
                    break
    return embedding, source


def _near(one: list[int], other: list[int], apart: int) -> bool:
    return one[0] == other[0] and max(abs(a - b) for a, b in zip(one[4:], other[4:], strict=True)) <= apart
