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

"""Who and why for one case in words and numbers: regions, prototypes, training patches, what would change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_rrr.attribution.tendency_region import label_without
from monai_rrr.inferers.tendency import (
    RegionTendency,
    TendencyMaps,
    explain_regions,
    voxel_saliency_box,
)
from monai_rrr.networks.nets.right_reasons_net import TellsWhoNet
from monai_rrr.utils.class_map import CLASSES

__all__ = ["Departure", "RegionWhy", "TrainingPatch", "class_names", "explain_why", "location"]

SELDOM = 0.1
"""A departure in less of a region than this is no tendency there."""

STANDS_OUT = 1.5
"""An annotator is named where the posterior is this many times that of the next one."""

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Departure:
    """How an outline departs from the consensus: which class was drawn instead of which.

    Args:
        label: class that was drawn.
        consensus: class of the consensus.
    """

    label: int
    consensus: int

    @property
    def kind(self) -> str:
        """``"more"`` tissue, ``"less"``, another ``"class"``, or ``"none"``."""
        if self.label == self.consensus:
            return "none"
        if self.consensus == 0:
            return "more"
        return "less" if self.label == 0 else "class"

    def words(self, names: Sequence[str]) -> str:
        """Say it neutrally."""
        own, shared = names[self.label], names[self.consensus]
        return {
            "none": "as the consensus",
            "more": f"draws {own} where the consensus has {shared}",
            "less": f"does not draw the {shared} of the consensus",
            "class": f"draws {own} where the consensus has {shared}",
        }[self.kind]


@dataclass(frozen=True)
class TrainingPatch:
    """A place in a training case that a prototype is, or that is like it.

    Args:
        case: index of the training case.
        annotator: index.
        departure: what was drawn there.
        voxel: of the grid of the training case.
        similarity: cosine: of a prototype with the region, of further places with their prototype.
    """

    case: int
    annotator: int
    departure: Departure
    voxel: tuple[int, int, int]
    similarity: float

    @classmethod
    def of(cls, source: Sequence[int], similarity: float) -> TrainingPatch:
        """Read an entry of :data:`~monai_rrr.networks.blocks.prototype_push.SOURCE`."""
        case, annotator, label, consensus, d, h, w = source
        return cls(case, annotator, Departure(label, consensus), (d, h, w), similarity)


@dataclass(frozen=True)
class RegionWhy:
    """One region in which annotators disagree.

    Args:
        found: who and why, see :class:`~monai_rrr.inferers.RegionTendency`.
        center: a voxel of the region with this departure, on the grid that the network saw (axes right, anterior,
            superior).
        departure: of the outline that the network gives the most likely annotator, most frequent one in the region.
        departure_share: of the voxels of the region.
        changed_share: of the voxels whose label would be another one without the annotator.
        patches: training patches of the matching prototypes, best first.
        further: for each of them, training patches that are most like the prototype.
        box: part of the image on which the result at this voxel depends, on the grid that the network saw.
    """

    found: RegionTendency
    center: tuple[int, int, int]
    departure: Departure
    departure_share: float
    changed_share: float
    patches: tuple[TrainingPatch, ...]
    further: tuple[tuple[TrainingPatch, ...], ...]
    box: Box

    @property
    def stands_out(self) -> bool:
        """Whether the result is clearly more like one annotator than like any other."""
        best, *others = sorted(self.found.posterior, reverse=True)
        return not others or best >= STANDS_OUT * others[0]

    def sentence(self, annotators: Sequence[str], names: Sequence[str]) -> str:
        """Say whose outlines the result is like, and what this annotator tends to do here."""
        name, likely = annotators[self.found.annotator], 100 * self.found.posterior[self.found.annotator]
        first = f"The result here is most like the outlines of {name} ({likely:.0f} %)"
        if not self.stands_out:
            first = f"No annotator stands out here; the result is slightly more like {name} ({likely:.0f} %)"
        if self.departure.kind == "none":
            return f"{first}, who tends to draw the same as the consensus here."
        detail = f"{self.departure.words(names)}, in {100 * self.departure_share:.0f} % of the region"
        if self.departure_share < SELDOM:
            return f"{first}, who mostly draws the same as the consensus here and {detail}."
        word = {"more": "larger", "less": "smaller", "class": "another tissue"}[self.departure.kind]
        return f"{first}, who tends to draw {word} here: {detail}."

    def counterfactual(self, annotators: Sequence[str], names: Sequence[str]) -> str:
        """Say what the label would be without the annotator."""
        name, own, without = annotators[self.found.annotator], names[self.found.label], names[self.found.label_without]
        start = f"Without {name}, the label of most of the region"
        changed = f"{100 * self.changed_share:.0f} % of its voxels would change"
        if own == without:
            return f"{start} stays {own}; {changed}."
        return f"{start} becomes {without} instead of {own}; {changed}."


def class_names(network: TellsWhoNet, names: Sequence[str] | None) -> tuple[str, ...]:
    """Check the names of the classes, or find some."""
    count = network.num_classes
    if names is None:
        return CLASSES if count == len(CLASSES) else ("background", *(f"class {c}" for c in range(1, count)))
    if len(names) != count:
        raise ValueError(f"expected {count} names of classes, got {list(names)}")
    return tuple(names)


def explain_why(
    network: TellsWhoNet,
    image: Tensor,
    maps: TendencyMaps,
    threshold: float = 0.2,
    least: int = 8,
    most: int = 8,
    count: int = 3,
) -> tuple[Tensor, list[RegionWhy]]:
    """Explain the largest regions in which annotators disagree, with the training patches behind them.

    Args:
        network: that made the maps. Prototypes that are no training patches are not shown.
        image: ``1MDHW``, what the network saw.
        maps: of this image.
        threshold: of the disagreement.
        least: voxels of a region; smaller ones are left out.
        most: regions, the largest ones.
        count: prototypes of each.

    Returns:
        the map of regions ``DHW``, 0 where none is, and one entry per region, largest first.
    """
    regions, found = explain_regions(network, maps, threshold=threshold, least=least, count=count)
    regions = torch.where(regions <= most, regions, 0)
    return regions, [_why(network, image, maps, regions == one.region, one) for one in found[:most]]


def _why(network: TellsWhoNet, image: Tensor, maps: TendencyMaps, inside: Tensor, found: RegionTendency) -> RegionWhy:
    own = maps.probability[0, 1 + found.annotator].argmax(0)[inside]
    consensus = maps.probability[0, 0].argmax(0)[inside]
    departure, share = _departure(own, consensus, network.num_classes)
    without = label_without(maps.share, maps.probability, found.annotator + 1)[0][inside]
    d, h, w = _typical_voxel(inside, own, consensus, departure)
    patches = []
    further = []
    bank = network.tendency_bank
    for match in found.matches:
        group = found.annotator * network.num_classes + match.label
        source: list[int] = bank.source[group, match.slot].tolist()
        if source[0] < 0:
            continue
        patches.append(TrainingPatch.of(source, match.similarity))
        near = zip(
            bank.nearest_source[group, match.slot].tolist(),
            bank.nearest_similarity[group, match.slot].tolist(),
            strict=True,
        )
        further.append(tuple(TrainingPatch.of(s, c) for s, c in near if s[0] >= 0 and s != source))
    label = int(maps.probability[0, 1 + found.annotator, :, d, h, w].argmax())
    return RegionWhy(
        found=found,
        center=(d, h, w),
        departure=departure,
        departure_share=share,
        changed_share=float((without != maps.label[0][inside]).double().mean()),
        patches=tuple(patches),
        further=tuple(further),
        box=voxel_saliency_box(network, image, (d, h, w), found.annotator, label),
    )


def _typical_voxel(inside: Tensor, own: Tensor, consensus: Tensor, departure: Departure) -> tuple[int, int, int]:
    """A voxel with the departure in the axial slice that has most of them, nearest to their center there."""
    places = inside.nonzero()[(own == departure.label) & (consensus == departure.consensus)]
    plane = places[places[:, 2] == places[:, 2].mode().values].double()
    d, h, w = plane[int((plane - plane.mean(0)).square().sum(1).argmin())].long().tolist()
    return d, h, w


def _departure(own: Tensor, consensus: Tensor, classes: int) -> tuple[Departure, float]:
    """The most frequent departure and its share of the voxels; none where both are the same everywhere."""
    pairs = (own * classes + consensus).bincount(minlength=classes * classes)
    counts = pairs.view(classes, classes).clone()
    counts.fill_diagonal_(0)
    if not bool(counts.any()):
        same = int(consensus.mode().values)
        return Departure(same, same), 1.0
    label, shared = divmod(int(counts.argmax()), classes)
    return Departure(label, shared), float(counts.max()) / len(own)


def location(image: Any, voxel: Sequence[int]) -> list[float] | None:
    """Place of a voxel in mm (right, anterior, superior), when the image knows where it is."""
    if not isinstance(image, MetaTensor):
        return None
    affine = np.asarray(image.affine, dtype=np.float64)
    return [round(float(x), 3) for x in affine[:3, :3] @ np.asarray(voxel, dtype=np.float64) + affine[:3, 3]]
