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

"""Kernels, embeddings and prototypes belong together: the terms that tie them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_rrr.attribution.tendency import ABSENT, prototype_share, prototype_similarity
from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.reduction import weighted_mean
from monai_rrr.objectives.voxel_sample import VoxelSample, sampled_voxels

__all__ = ["KernelDiversity", "KernelTie", "PrototypeContrast", "PrototypeDistance"]

_PROTOTYPES = ("embedding", "shared_prototypes", "tendency_prototypes")


@dataclass(frozen=True)
class KernelTie:
    r"""A kernel answers where its prototype does (``L_tie``).

    .. math:: L = \operatorname{mean}_{v, r\,:\, y_r \ne y_{cons}} \mathrm{KL}\big(\mathrm{sg}\, q_{r,c}(v) \,\|\,
              \operatorname{softmax}_m a_{r,c,m}(v) / \tau \big) + \lambda \operatorname{mean}_{r,c,m}
              \big(1 - \cos(k_{r,c,m}, \mathrm{sg}\, p_{r,c,m})\big), \qquad c = y_r(v)

    Annotators that drew nothing in the batch are left out.

    Args:
        temperature: ``tau`` of the kernels, as in the network.
        prototype_temperature: ``tau_p``.
        direct: ``lambda``.
        shuffled: tie each annotator's kernels to the prototypes of the next annotator: a control.

    Shape:
        - batch: as made by :class:`~monai_rrr.engines.annotations.PrepareAnnotations`.
    """

    temperature: float = 1.0
    prototype_temperature: float = 0.1
    direct: float = 0.1
    shuffled: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return ("embedding", "kernels", "scale", "tendency_prototypes")

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        sample, features = sampled_voxels(trace, batch), trace.features
        kernels, prototypes = features["kernels"], features["tendency_prototypes"].detach()
        prototypes = prototypes.to(kernels.dtype)
        if self.shuffled:
            prototypes = prototypes.roll(1, 0)
        drawn = sample.label.clamp(min=0).long()[:, :, None, None].expand(-1, -1, 1, kernels.shape[2])
        cosine = prototype_similarity(sample.embedding, prototypes).gather(2, drawn)[:, :, 0].detach()
        answer = features["scale"] * prototype_similarity(sample.embedding, kernels).gather(2, drawn)[:, :, 0]
        share = prototype_share(cosine, self.prototype_temperature)
        log_ratio = share.clamp(min=1e-12).log() - (answer / self.temperature).log_softmax(2)
        there = (cosine > ABSENT / 2).all(2)
        value = weighted_mean((share * log_ratio).sum(2), sample.deviates & there)
        apart = 1 - (kernels * prototypes).sum(-1)
        present = batch["annotated"].any(0)[:, None, None] & (prototypes.square().sum(-1) > 0)
        return value + self.direct * weighted_mean(apart, present)


@dataclass(frozen=True)
class PrototypeContrast:
    r"""An embedding is like the prototypes of those who draw so, and like no others (``L_ppc``).

    .. math:: L = -\operatorname{mean}_v \log \frac{\sum_{p \in P^+(v)} e^{\cos(g(v), p) / \tau_p}}
              {\sum_p e^{\cos(g(v), p) / \tau_p}}

    with :math:`P^+(v)` the prototypes of ``(r, y_r(v))`` of all annotators who deviate at the voxel, or, where none
    does, the shared ones of the consensus label. Voxels for which there are none yet don't count.

    Args:
        temperature: ``tau_p``.

    Shape:
        - batch: as made by :class:`~monai_rrr.engines.annotations.PrepareAnnotations`.
    """

    temperature: float = 0.1

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return _PROTOTYPES

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        cosine, positive = _compared(trace, sampled_voxels(trace, batch))
        score = cosine / self.temperature
        own = torch.where(positive, score, ABSENT / self.temperature).logsumexp(1)
        return weighted_mean(score.logsumexp(1) - own, positive.any(1))


@dataclass(frozen=True)
class PrototypeDistance:
    r"""An embedding is close to its prototype (``L_ppd``).

    .. math:: L = \operatorname{mean}_v \big(1 - \max_{p \in P^+(v)} \cos(g(v), p)\big)^2

    Shape:
        - batch: as made by :class:`~monai_rrr.engines.annotations.PrepareAnnotations`.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return _PROTOTYPES

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        cosine, positive = _compared(trace, sampled_voxels(trace, batch))
        best = torch.where(positive, cosine, -1.0).amax(1)
        return weighted_mean((1 - best).square(), positive.any(1))


@dataclass(frozen=True)
class KernelDiversity:
    r"""The kernels of one annotator and class differ (``L_div``).

    .. math:: L = \sum_{r,c} \operatorname{mean}_{m \ne m'} \max\big(0, \cos(k_m, k_{m'}) - \mu\big)^2

    Args:
        margin: ``mu``.
    """

    margin: float = 0.5

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return ("kernels",)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        kernels = trace.features["kernels"]
        slots = kernels.shape[2]
        cosine = kernels @ kernels.transpose(2, 3)
        others = ~torch.eye(slots, dtype=torch.bool, device=kernels.device)
        return ((cosine - self.margin).clamp(min=0).square() * others).sum() / max(1, slots * (slots - 1))


def _compared(trace: Trace, sample: VoxelSample) -> tuple[Tensor, Tensor]:
    """Cosines with all prototypes, and which of these are the voxel's own: both ``n P``."""
    shared_prototypes, prototypes = trace.features["shared_prototypes"], trace.features["tendency_prototypes"]
    shared = prototype_similarity(sample.embedding, shared_prototypes)
    tendency = prototype_similarity(sample.embedding, prototypes)
    classes = shared.shape[1]
    own_shared = sample.agreed(classes)[..., None].expand_as(shared)
    own_tendency = sample.one_hot(classes)[..., None].expand_as(tendency)
    cosine = torch.cat([shared.flatten(1), tendency.flatten(1)], 1)
    own = torch.cat([own_shared.flatten(1), own_tendency.flatten(1)], 1)
    return cosine, own & (cosine > ABSENT / 2)
