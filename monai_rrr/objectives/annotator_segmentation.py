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

"""Each annotator's own outline, their consensus, and how far both may be apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.attribution.tendency import annotator_share, mixture, prototype_similarity
from monai_rrr.attribution.trace import Trace
from monai_rrr.losses.reduction import full_precision, weighted_mean
from monai_rrr.losses.soft_dice_ce import SoftDiceCELoss
from monai_rrr.objectives.voxel_sample import at_voxels, sampled_voxels

__all__ = [
    "AnnotatorMixture",
    "AnnotatorSegmentation",
    "ConsensusSegmentation",
    "SignedDistance",
    "TendencyParsimony",
]


@dataclass(frozen=True)
class AnnotatorSegmentation:
    r"""Dice and cross-entropy of each annotator's segmentation with what the annotator drew (``L_seg``).

    .. math:: L = \operatorname{mean}_b \sum_{r \in O_b} w_r (\mathrm{Dice} + \mathrm{CE})(p_r, y_r) /
              \sum_{r \in O_b} w_r

    ``O_b`` are the annotators of the case; the kernels of others get no gradient, provided that the network was called
    with ``annotated``.

    Args:
        layer: that holds the logits of the annotators.

    Shape:
        - batch: ``annotations`` ``BRDHW``, classes, negative where missing; ``annotated`` ``BR`` boolean;
          ``annotator_weight`` ``R`` or ``BR``, default 1.

    Raises:
        ValueError: When shapes do not fit.
    """

    layer: str = "annotator_logits"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return (self.layer,)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        logits, label = trace.features[self.layer], batch["annotations"]
        if label.shape != (*logits.shape[:2], *logits.shape[3:]):
            raise ValueError(f"annotations {tuple(label.shape)} do not match logits {tuple(logits.shape)}")
        pairs, drawn = logits.flatten(0, 1), label.flatten(0, 1)
        known = drawn[:, None] >= 0
        target = F.one_hot(drawn.clamp(min=0).long(), logits.shape[2]).movedim(-1, 1)
        value = SoftDiceCELoss(reduction="none")(pairs, target, known).unflatten(0, logits.shape[:2])
        weight = batch["annotated"].to(value.dtype)
        if "annotator_weight" in batch:
            weight = weight * batch["annotator_weight"].to(weight)
        total = weight.sum(1)
        each = (value * weight).sum(1) / torch.where(total > 0, total, 1.0)
        return weighted_mean(each, total > 0)


@dataclass(frozen=True)
class ConsensusSegmentation:
    r"""Dice and cross-entropy of the consensus with a soft target (``L_cons``).

    .. math:: L = \operatorname{mean}_{b\,:\,\text{drawn}} (\mathrm{Dice} + \mathrm{CE})(p_0, T)

    0, with zero gradient, when nobody drew any case of the batch.

    Args:
        consensus: layer that holds the logits of the consensus. Default: what the network returns.

    Shape:
        - logits: ``BCDHW``; batch: ``consensus`` ``BCDHW``, probabilities; zeros where nothing is known.
    """

    consensus: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return _named(self.consensus)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        target = batch["consensus"]
        known = target.sum(1, keepdim=True) > 0
        value = SoftDiceCELoss(reduction="none")(_logits(trace, self.consensus), target, known)
        return weighted_mean(value, known.flatten(1).any(1))


@dataclass(frozen=True)
class SignedDistance:
    """Smooth L1 of the predicted signed distances with those of the consensus, in units of ``limit`` (``L_sdf``).

    The mean runs over the cases that somebody drew; 0, with zero gradient, when there is none in the batch.

    Args:
        limit: mm, as in the batch: distances are clipped there. The loss is divided by it, so that its weight does not
            depend on it.
        layer: that holds the distances, in mm.

    Shape:
        - batch: ``signed_distance`` ``B regions DHW`` in mm, positive inside; ``annotated`` ``BR``, default: all are
          drawn.

    Raises:
        ValueError: When shapes do not fit.
    """

    limit: float = 8.0
    layer: str = "signed_distance"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return (self.layer,)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        distance, target = trace.features[self.layer], batch["signed_distance"]
        if distance.shape != target.shape:
            raise ValueError(f"distances {tuple(distance.shape)} do not match the batch's {tuple(target.shape)}")
        distance = full_precision(distance)
        value = F.smooth_l1_loss(distance / self.limit, target.to(distance) / self.limit, reduction="none")
        drawn = batch["annotated"].any(1) if "annotated" in batch else torch.ones_like(value[:, 0, 0, 0, 0])
        return weighted_mean(value.flatten(1).mean(1), drawn)


@dataclass(frozen=True)
class TendencyParsimony:
    r"""What annotators depart from the consensus where they agree (``L_par``), at the drawn voxels.

    .. math:: L = \operatorname{mean}_{v, r \in O} |\tilde\Delta_r(v)|_1

    Estimated at the drawn voxels where nobody deviates.

    Args:
        layer: that holds the logits of the annotators.
        consensus: layer that holds those of the consensus. Default: what the network returns.

    Shape:
        - batch: as made by :class:`~monai_rrr.engines.annotations.PrepareAnnotations`.
    """

    layer: str = "annotator_logits"
    consensus: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        return (self.layer, "embedding", *_named(self.consensus))

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        sample = sampled_voxels(trace, batch)
        consensus = at_voxels(_logits(trace, self.consensus), sample.voxel)[:, None]
        apart = at_voxels(trace.features[self.layer], sample.voxel) - consensus
        alike = ~sample.deviates.any(1, keepdim=True)
        return weighted_mean(apart.abs().sum(2), sample.observed & alike)


@dataclass(frozen=True)
class AnnotatorMixture:
    r"""Likelihood of what was drawn under the mixture of all habits (``L_mix``).

    .. math:: L = -\operatorname{mean}_v \tfrac{1}{|O|} \sum_{r \in O} \log p_{mix}(y_r(v) | v)

    at the drawn voxels where someone deviates or near a boundary. Only annotators of the case and what all share take
    part in the mixture, so that absent annotators get no gradient.

    Args:
        temperature: ``tau_a`` of :func:`~monai_rrr.attribution.annotator_share`.
        layer: that holds the logits of the annotators.
        consensus: layer that holds those of the consensus. Default: what the network returns.

    Shape:
        - batch: as made by :class:`~monai_rrr.engines.annotations.PrepareAnnotations`.
    """

    temperature: float = 0.1
    layer: str = "annotator_logits"
    consensus: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        banks = ("shared_prototypes", "tendency_prototypes", "prior")
        return (self.layer, "embedding", *banks, *_named(self.consensus))

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        sample, features = sampled_voxels(trace, batch), trace.features
        shared = prototype_similarity(sample.embedding, features["shared_prototypes"])
        tendency = prototype_similarity(sample.embedding, features["tendency_prototypes"])
        taking_part = F.pad(sample.observed, (1, 0), value=True)
        share = annotator_share(shared, tendency, features["prior"] * taking_part, self.temperature)
        consensus = at_voxels(_logits(trace, self.consensus), sample.voxel)[:, None]
        logits = torch.cat([consensus, at_voxels(features[self.layer], sample.voxel)], 1)
        mixed = mixture(share, full_precision(logits).softmax(2))
        value = -mixed.gather(1, sample.label.clamp(min=0).long()).clamp(min=1e-12).log()
        observed = sample.observed.to(value.dtype)
        each = (value * observed).sum(1) / observed.sum(1).clamp(min=1)
        chosen = (sample.stratum >= 0) & (sample.stratum < 2) & sample.observed.any(1)
        return weighted_mean(each, chosen)


def _named(layer: str | None) -> tuple[str, ...]:
    return () if layer is None else (layer,)


def _logits(trace: Trace, layer: str | None) -> Tensor:
    return trace.logits if layer is None else trace.features[layer]
