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

"""Who and why, voxel by voxel: to whose prototypes an embedding belongs, and what follows from it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "annotator_share",
    "assignment",
    "deviation",
    "mixture",
    "prototype_share",
    "prototype_similarity",
    "responsibility",
    "signed_tendency",
]

ABSENT = -1e4
"""Similarity to a prototype that is not there: finite, and 0 after any softmax beside one that is."""


def prototype_similarity(embedding: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines, ``n E`` with ``... E`` to ``n ...``; :data:`ABSENT` for prototypes of zeros, which are not there yet.

    Args:
        embedding: ``n E``, of norm 1.
        prototypes: ``... E``, of norm 1 or 0.

    Raises:
        ValueError: When the dimensions differ.
    """
    if embedding.ndim != 2 or embedding.shape[-1] != prototypes.shape[-1]:
        raise ValueError(f"embedding {tuple(embedding.shape)} does not match prototypes {tuple(prototypes.shape)}")
    points = prototypes.to(embedding.dtype)
    cosine = (embedding @ points.flatten(0, -2).T).unflatten(1, points.shape[:-1])
    return torch.where(points.square().sum(-1) > 0, cosine, ABSENT)


def prototype_share(similarity: Tensor, temperature: float = 0.1) -> Tensor:
    r"""To which prototype of its annotator and class an embedding belongs.

    .. math:: q_{r,c,m}(v) = \operatorname{softmax}_m \cos(g(v), p_{r,c,m}) / \tau_p

    Shape:
        - similarity, output: ``... M``.
    """
    return (similarity / temperature).softmax(-1)


def annotator_share(shared: Tensor, tendency: Tensor, prior: Tensor, temperature: float = 0.1) -> Tensor:
    r"""Whose habit a voxel looks like, from similarities.

    .. math:: \alpha_r(v) = \operatorname{softmax}_{r = 0 \ldots R} \big( \log \rho_r + \max_{c,m}
              \cos(g(v), p_{r,c,m}) / \tau_a \big)

    ``r = 0`` is what all share, with the prototypes of the shared bank.

    Args:
        shared: similarities ``n C K``.
        tendency: similarities ``n R C M``.
        prior: ``1+R``, or ``n 1+R``; 0 leaves one out.
        temperature: ``tau_a``, a setting that the sources leave open.

    Returns:
        ``n 1+R``, sums to 1.
    """
    best = torch.cat([shared.flatten(1).amax(1, keepdim=True), tendency.flatten(2).amax(2)], 1)
    share: Tensor = (prior.to(best.dtype).log() + best / temperature).softmax(1)
    return share


def assignment(
    embedding: Tensor, shared: Tensor, tendency: Tensor, prior: Tensor, temperature: float = 0.1, chunk: int = 65536
) -> Tensor:
    """:func:`annotator_share` of embeddings, a part of the voxels at a time.

    Args:
        embedding: ``BEdhw``.
        shared: prototypes ``C K E``.
        tendency: prototypes ``R C M E``.
        prior: ``1+R``.
        temperature: ``tau_a``.
        chunk: voxels at a time.

    Returns:
        ``B 1+R dhw``.
    """
    points = embedding.movedim(1, -1).flatten(0, -2)
    parts = [
        annotator_share(prototype_similarity(part, shared), prototype_similarity(part, tendency), prior, temperature)
        for part in points.split(chunk)
    ]
    size = (len(embedding), *embedding.shape[2:])
    found: Tensor = torch.cat(parts).unflatten(0, size).movedim(-1, 1)
    return found


def mixture(share: Tensor, probability: Tensor) -> Tensor:
    r"""What the annotators say together, each as far as a voxel looks like its habit.

    .. math:: p_{mix}(c | v) = \sum_r \alpha_r(v)\, p_r(c | v)

    Shape:
        - share: ``B 1+R ...``; probability: ``B 1+R C ...``, the consensus first; output: ``B C ...``.
    """
    _check(share, probability)
    return (share[:, :, None] * probability).sum(1)


def responsibility(share: Tensor, probability: Tensor, label: Tensor) -> Tensor:
    r"""Who made the label that was given: the exact responsibilities of the mixture.

    .. math:: \mathrm{who}_r(v) = \frac{\alpha_r(v)\, p_r(\hat y(v) | v)}{\sum_s \alpha_s(v)\, p_s(\hat y(v) | v)}

    Sums to 1 over ``r = 0 ... R``. Single voxels can't be told apart reliably: judge regions or cases.

    Shape:
        - share: ``B 1+R ...``; probability: ``B 1+R C ...``, the consensus first; label: ``B ...`` whole numbers;
          output: ``B 1+R ...``.
    """
    _check(share, probability)
    if label.shape != (len(share), *share.shape[2:]):
        raise ValueError(f"label {tuple(label.shape)} does not match share {tuple(share.shape)}")
    index = label[:, None, None].expand(-1, probability.shape[1], 1, *label.shape[1:])
    joint = share * probability.gather(2, index)[:, :, 0]
    return joint / joint.sum(1, keepdim=True).clamp(min=torch.finfo(joint.dtype).tiny)


def deviation(probability: Tensor, consensus: Tensor) -> Tensor:
    r"""How likely each annotator departs from the consensus.

    .. math:: \mathrm{dev}_r(v) = 1 - p_r(y_{cons}(v) | v)

    Shape:
        - probability: ``BRC...``; consensus: ``B...`` whole numbers; output: ``BR...`` in [0, 1].
    """
    index = consensus[:, None, None].expand(-1, probability.shape[1], 1, *consensus.shape[1:])
    return 1 - probability.gather(2, index)[:, :, 0]


def signed_tendency(annotators: Tensor, consensus: Tensor) -> Tensor:
    r"""Where an annotator draws more (+) or less (-) of the foreground than the consensus does.

    .. math:: \operatorname{logit} p_r(c > 0 | v) - \operatorname{logit} p_0(c > 0 | v)

    Shape:
        - annotators: logits ``BRC...``; consensus: logits ``BC...``; output: ``BR...``.
    """

    def odds(logits: Tensor, dim: int) -> Tensor:
        background, rest = logits.split([1, logits.shape[dim] - 1], dim)
        found: Tensor = torch.logsumexp(rest, dim) - background.squeeze(dim)
        return found

    return odds(annotators, 2) - odds(consensus, 1)[:, None]


def _check(share: Tensor, probability: Tensor) -> None:
    if share.shape != (*probability.shape[:2], *probability.shape[3:]):
        raise ValueError(f"share {tuple(share.shape)} does not match probability {tuple(probability.shape)}")
