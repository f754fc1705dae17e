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

"""Who drives the result here, and why: all maps of the annotator-tendency network for one volume."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from monai_rrr.attribution.exclusive import evaluating
from monai_rrr.attribution.tendency import assignment, deviation, mixture, responsibility, signed_tendency
from monai_rrr.attribution.tendency_region import (
    PrototypeMatch,
    annotator_posterior,
    disagreement,
    label_without,
    matching_prototypes,
    saliency_box,
)
from monai_rrr.attribution.trace import INPUT, record
from monai_rrr.networks.nets.right_reasons_net import TellsWhoNet

__all__ = ["RegionTendency", "TendencyMaps", "explain_regions", "tendency_maps", "voxel_saliency_box"]


@dataclass(frozen=True)
class TendencyMaps:
    """What the network says about a batch, all on the grid of the image.

    Where the image is 0 in all modalities there is no brain: everything is background, which all share.

    Attributes:
        probability: ``B 1+R C DHW``, the consensus first, then the annotators.
        share: ``B 1+R DHW``, whose habit a voxel looks like; 0 is what all share.
        mixed: ``BCDHW``, the mixture of the probabilities by the shares.
        label: ``BDHW``, the most likely class of the mixture: what is given out.
        who: ``B 1+R DHW``, responsibilities for that label; sums to 1.
        deviation: ``BRDHW`` in [0, 1], how likely an annotator departs from the consensus.
        tendency: ``BRDHW``, log-odds of foreground: + draws more than the consensus, - less.
        disagreement: ``BDHW`` in [0, 1], total variation between the two annotators who differ most.
        embedding: ``BEdhw``, on the grid of the embedding.
    """

    probability: Tensor
    share: Tensor
    mixed: Tensor
    label: Tensor
    who: Tensor
    deviation: Tensor
    tendency: Tensor
    disagreement: Tensor
    embedding: Tensor


@torch.no_grad()
def tendency_maps(
    network: TellsWhoNet, image: Tensor, temperature: float = 0.1, probability: Tensor | None = None
) -> TendencyMaps:
    """Call the network once, in evaluation mode, and compute all maps.

    Args:
        network: unwrapped; left as it was.
        image: ``BMDHW``, whole volumes.
        temperature: ``tau_a``.
        probability: ``B 1+R C DHW``, such as :class:`~monai_rrr.inferers.AnnotatorInferer` averages over mirrored
            images. Default: that of this call.

    Raises:
        ValueError: When ``probability`` is not that of the image and the annotators.
    """
    layers = ("consensus", "annotator_logits", "embedding", "shared_prototypes", "tendency_prototypes", "prior")
    with evaluating(network):
        trace = record(network, image, layers)
    found = trace.features
    share = assignment(
        found["embedding"], found["shared_prototypes"], found["tendency_prototypes"], found["prior"], temperature
    )
    if share.shape[2:] != image.shape[2:]:
        share = F.interpolate(share, size=image.shape[2:], mode="trilinear", align_corners=False)
    own = torch.cat([found["consensus"][:, None], found["annotator_logits"]], 1).softmax(2)
    if probability is not None and probability.shape != own.shape:
        raise ValueError(f"expected probability {tuple(own.shape)}, got {tuple(probability.shape)}")
    brain = (image != 0).any(1)[:, None]
    probability = _or_first(own if probability is None else probability.to(own), brain[:, None], 2)
    share = _or_first(share, brain, 1)
    mixed = mixture(share, probability)
    label = mixed.argmax(1)
    # their log-odds are those of the logits, up to what single precision holds
    logits = probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
    return TendencyMaps(
        probability=probability,
        share=share,
        mixed=mixed,
        label=label,
        who=responsibility(share, probability, label),
        deviation=deviation(probability[:, 1:], probability[:, 0].argmax(1)),
        tendency=signed_tendency(logits[:, 1:], logits[:, 0]),
        disagreement=disagreement(probability[:, 1:]),
        embedding=found["embedding"],
    )


def _or_first(share: Tensor, where: Tensor, dim: int) -> Tensor:
    """Shares that sum to 1 over a dimension, and elsewhere all of them in its first entry."""
    first = torch.zeros_like(share)
    first.select(dim, 0).fill_(1)
    return torch.where(where, share, first)


@dataclass(frozen=True)
class RegionTendency:
    """Who and why for one region in which annotators disagree.

    Attributes:
        region: number of the region in the map of regions, from 1.
        voxels: its size.
        posterior: of each annotator, sums to 1: whose version the label in the region is.
        annotator: the most likely one, an index.
        matches: prototypes of that annotator that are most like the region, best first.
        label: the label in most of its voxels.
        label_without: the same, had the annotator not taken part.
    """

    region: int
    voxels: int
    posterior: tuple[float, ...]
    annotator: int
    matches: tuple[PrototypeMatch, ...]
    label: int
    label_without: int


def explain_regions(
    network: TellsWhoNet,
    maps: TendencyMaps,
    label: Tensor | None = None,
    threshold: float = 0.2,
    least: int = 8,
    count: int = 3,
    temperature: float = 100.0,
) -> tuple[Tensor, list[RegionTendency]]:
    """Explain the connected regions of one volume in which annotators disagree.

    Args:
        network: that made the maps; its prototypes are looked up.
        maps: of one volume.
        label: ``DHW``, a mask by an unknown annotator. Default: the label that the network gives.
        threshold: of the disagreement.
        least: voxels of a region; smaller ones are left out.
        count: prototypes.
        temperature: see :func:`~monai_rrr.attribution.annotator_posterior`.

    Returns:
        the map of regions ``DHW``, 0 where none is, and one entry per region, largest first.

    Raises:
        ValueError: When the maps are of several volumes.
    """
    if len(maps.label) != 1:
        raise ValueError(f"expected maps of one volume, got {len(maps.label)}")
    given = maps.label[0] if label is None else label.to(maps.label.device)
    regions = _regions(maps.disagreement[0] > threshold, least)
    size = regions.flatten().bincount()[1:].tolist()
    if not bool(regions.any()):
        return regions, []
    posterior = annotator_posterior(maps.probability[0, 1:], given, regions, network.prior_weight[1:], temperature)
    prototypes = network.tendency_bank.prototype.unflatten(0, (-1, network.num_classes))
    coarse = F.interpolate(regions[None, None].float(), size=maps.embedding.shape[2:], mode="nearest")[0, 0].long()
    points = maps.embedding[0].movedim(0, -1)
    found = []
    for index, voxels in enumerate(size, start=1):
        annotator = int(posterior[index - 1].argmax())
        inside, seen = regions == index, points[coarse == index]
        without = label_without(maps.share, maps.probability, annotator + 1)[0]
        matches = matching_prototypes(seen, prototypes[annotator], count) if len(seen) else []
        found.append(
            RegionTendency(
                region=index,
                voxels=voxels,
                posterior=tuple(posterior[index - 1].tolist()),
                annotator=annotator,
                matches=tuple(matches),
                label=int(given[inside].mode().values),
                label_without=int(without[inside].mode().values),
            )
        )
    return regions, found


def voxel_saliency_box(
    network: TellsWhoNet, image: Tensor, voxel: tuple[int, int, int], annotator: int, label: int
) -> tuple[tuple[int, int], ...]:
    """The part of the image on which one annotator's logit of a class at a voxel depends.

    Args:
        network: unwrapped; left as it was.
        image: ``1MDHW``.
        voxel: of the image's grid.
        annotator: an index.
        label: class.

    Returns:
        for each axis the first voxel and the one after the last, see
        :func:`~monai_rrr.attribution.saliency_box`.
    """
    with torch.enable_grad(), evaluating(network):
        trace = record(network, image, (INPUT, "annotator_logits"), frozen_weights=True)
        d, h, w = voxel
        value = trace.features["annotator_logits"][0, annotator, label, d, h, w]
        (gradient,) = torch.autograd.grad(value, trace.features[INPUT])
    return saliency_box(gradient[0])


def _regions(mask: Tensor, least: int) -> Tensor:
    """Connected regions, the largest first as 1."""
    labels, count = ndimage.label(mask.cpu().numpy())
    found = torch.as_tensor(labels).long()
    size = found.flatten().bincount(minlength=count + 1)
    size[0] = 0
    order = size.argsort(descending=True, stable=True)
    renumbered = torch.zeros(count + 1, dtype=torch.int64)
    kept = order[size[order] >= max(1, least)]
    renumbered[kept] = torch.arange(1, len(kept) + 1)
    return renumbered[found].to(mask.device)
