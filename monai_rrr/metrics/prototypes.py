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

"""Whether a prototype stands for what it is named after."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["prototype_purity"]


def prototype_purity(
    prototypes: Tensor, names: Tensor, embeddings: Tensor, embedding_names: Tensor, neighbors: int = 10
) -> Tensor:
    """Share of the nearest embeddings (cosine) that carry the name of the prototype, in [0, 1].

    A name is a number for annotator and class together, such as ``annotator * C + class``. The chance level is the
    share of the name among all embeddings: print it beside. Use embeddings of cases that made no prototype; a prototype
    that was replaced by a training embedding finds itself otherwise.

    Args:
        prototypes: prototypes.
        names: name of each prototype.
        embeddings: embeddings of voxels.
        embedding_names: name of each.
        neighbors: number of nearest embeddings.

    Shape:
        - prototypes: ``PE``; names: ``P``; embeddings: ``NE``; embedding_names: ``N``
        - output: ``P``

    Raises:
        ValueError: When shapes don't match, or there are fewer embeddings than neighbors.

    Example:
        >>> prototype_purity(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 0]), neighbors=1)
        tensor([1., 0.])
    """
    fits = prototypes.ndim == 2 and embeddings.ndim == 2 and prototypes.shape[1] == embeddings.shape[1]
    if not fits or names.shape != prototypes.shape[:1] or embedding_names.shape != embeddings.shape[:1]:
        got = [tuple(values.shape) for values in (prototypes, names, embeddings, embedding_names)]
        raise ValueError(f"expected P E, P, N E and N, got {got}")
    if not 1 <= neighbors <= len(embeddings):
        raise ValueError(f"expected 1 to {len(embeddings)} neighbors, got {neighbors}")
    unit = [torch.nn.functional.normalize(values.detach().float(), dim=1) for values in (prototypes, embeddings)]
    nearest = (unit[0] @ unit[1].T).topk(neighbors, dim=1).indices
    return (embedding_names[nearest] == names[:, None]).float().mean(1)
