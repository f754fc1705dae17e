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

"""``why.json`` and its pictures: where prototypes come from, in words that blame nobody."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch import Tensor

from monai_rrr.attribution.tendency_region import annotator_posterior
from monai_rrr.inferers.tendency import TendencyMaps
from monai_rrr.networks.nets.right_reasons_net import TellsWhoNet
from monai_rrr.report.image_grid import SourceGrid, VolumeGrid
from monai_rrr.report.tendency_case import Box, Departure, RegionWhy, TrainingPatch, location
from monai_rrr.report.tendency_picture import PatchView, patch_view, why_figure
from monai_rrr.transforms.vote_share import vote_share
from monai_rrr.utils.provenance import INTENDED_USE

__all__ = ["NOTE", "TrainingCases", "why_picture", "why_record"]

NOTE = (
    "Annotators are pseudonyms. This says whose habit of outlining the result resembles, and which training patches "
    "show the same habit. A habit is not an error and the consensus is not the truth. Judge regions: single voxels "
    "can't be attributed."
)


WEAK = 0.5
"""A similarity below this is called weak."""


class TrainingCases:
    """The training cases that prototypes come from; only those that are asked for are read, each once.

    Args:
        cases: in the order in which the prototypes count them. None: they are not at hand, and only their numbers are
            known, which is all that weights hold.
        annotators: ids.
        names: of the classes.
    """

    def __init__(
        self, cases: Sequence[Mapping[str, Any]] | None, annotators: Sequence[str], names: Sequence[str]
    ) -> None:
        self.cases, self.annotators, self.names = cases, tuple(annotators), tuple(names)
        self._read: dict[int, Mapping[str, Any]] = {}

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return a case.

        Raises:
            ValueError: When it is not there, or has no image or no mask of every annotator.
        """
        if index not in self._read:
            cases = self.cases or ()
            if index >= len(cases):
                raise ValueError(f"a prototype comes from training case {index}, got {len(cases)} training cases")
            case = cases[index]
            shape = tuple(case["annotations"].shape)
            if len(shape) != 4 or case["image"].shape[1:] != shape[1:]:
                raise ValueError(
                    f"training case {index}: expected image MDHW and annotations RDHW, got "
                    f"{tuple(case['image'].shape)} and {shape}"
                )
            if "geometry" in case:
                case = {**case, "image": VolumeGrid.of(case).seen}
            self._read[index] = case
        return self._read[index]

    def name(self, index: int) -> str:
        """Id of a case."""
        return str(self[index].get("case_id", index))

    def drawn(self, patch: TrainingPatch) -> tuple[Tensor, Tensor]:
        """Classes of the annotator and of the consensus, both ``DHW``.

        Raises:
            ValueError: When the mask does not hold what the prototype says was drawn there.
        """
        case = self[patch.case]
        annotations = case["annotations"].cpu()
        d, h, w = patch.voxel
        drawn = annotations[patch.annotator, d, h, w] if patch.annotator < len(annotations) else None
        if drawn is None or int(drawn) != patch.departure.label:
            raise ValueError(
                f"training case {self.name(patch.case)} does not show class {patch.departure.label} of annotator "
                f"{self.annotators[patch.annotator]} at {patch.voxel}: expected the cases of the training, in its order"
            )
        consensus = case.get("consensus")
        if consensus is None:
            annotated = case.get("annotated", (annotations >= 0).flatten(1).any(1)).cpu()
            consensus = vote_share(annotations[None].long(), annotated[None], len(self.names))[0]
        return annotations[patch.annotator], consensus.cpu().argmax(0)

    def entry(self, patch: TrainingPatch) -> dict[str, Any]:
        """What ``why.json`` says about a patch: ``case`` is null where the training cases are not at hand."""
        found: dict[str, Any] = {
            "case": None if self.cases is None else self.name(patch.case),
            "case_number": patch.case,
            "annotator": self.annotators[patch.annotator],
            "voxel": list(patch.voxel),
            "cosine": round(patch.similarity, 4),
            "deviation": patch.departure.kind,
            "drawn": self.names[patch.departure.label],
            "consensus": self.names[patch.departure.consensus],
        }
        mm = None if self.cases is None else location(self[patch.case]["image"], patch.voxel)
        return found if mm is None else found | {"mm": mm}


def why_record(
    network: TellsWhoNet,
    case_id: str,
    grid: SourceGrid,
    maps: TendencyMaps,
    why: Sequence[RegionWhy],
    sources: TrainingCases,
    threshold: float,
) -> dict[str, Any]:
    """Return the content of ``why.json``.

    Places of the case are voxels of the image's file and mm (right, anterior, superior); those of training cases are
    voxels of the grid that was trained on, and mm when the case says where it lies. ``case_number`` counts the training
    cases from 0, in the order of the training.

    Args:
        network: that made the maps.
        case_id: of the case.
        grid: what the network saw, and where it lies.
        maps: of the case.
        why: regions.
        sources: training cases.
        threshold: of the disagreement.
    """
    disputed = maps.disagreement[0] > threshold
    whole = annotator_posterior(maps.probability[0, 1:], maps.label[0], disputed, network.prior_weight[1:])[0]
    seen = np.asarray(grid.seen.affine, dtype=np.float64)
    to_file = np.linalg.inv(grid.affine) @ seen
    volume = abs(float(np.linalg.det(seen[:3, :3])))
    regions = []
    for one in why:
        center = to_file[:3, :3] @ np.asarray(one.center) + to_file[:3, 3]
        size = np.linalg.norm(seen[:3, :3], axis=0)
        regions.append(
            {
                "region": one.found.region,
                "volume_mm3": round(one.found.voxels * volume, 3),
                "voxel": [round(float(x), 2) for x in center],
                "mm": location(grid.seen, one.center),
                "who": _shares(sources.annotators, one.found.posterior),
                "most_like": sources.annotators[one.found.annotator],
                "stands_out": one.stands_out,
                "tendency": one.departure.kind,
                "drawn": sources.names[one.departure.label],
                "consensus": sources.names[one.departure.consensus],
                "share": round(one.departure_share, 4),
                "sentence": one.sentence(sources.annotators, sources.names),
                "label": sources.names[one.found.label],
                "label_without": sources.names[one.found.label_without],
                "changed_share": round(one.changed_share, 4),
                "counterfactual": one.counterfactual(sources.annotators, sources.names),
                "rests_on_mm": [round(float((b - a) * s), 2) for (a, b), s in zip(one.box, size, strict=True)],
                "prototypes": [
                    sources.entry(patch) | {"nearest": [sources.entry(other) for other in others]}
                    for patch, others in zip(one.patches, one.further, strict=True)
                ],
            }
        )
    return {
        "intended_use": INTENDED_USE,
        "note": NOTE,
        "case": case_id,
        "annotators": list(sources.annotators),
        "classes": list(sources.names),
        "rho": _shares(sources.annotators, network.rho.tolist()),
        "who": _shares(sources.annotators, whole.tolist()),
        "disagreement": {"threshold": threshold, "volume_ml": round(float(disputed.sum()) * volume / 1000, 4)},
        "regions": regions,
    }


def why_picture(
    one: RegionWhy,
    case_id: str,
    image: MetaTensor,
    maps: TendencyMaps,
    sources: TrainingCases,
    modalities: Sequence[str],
) -> Figure:
    """Draw a region beside the training patches of its prototypes.

    Args:
        one: region.
        case_id: of the case.
        image: ``MDHW``, what the network saw.
        maps: of the case.
        sources: training cases.
        modalities: names of the channels.
    """
    annotator = one.found.annotator
    name = sources.annotators[annotator]
    own, consensus = maps.probability[0, 1 + annotator].argmax(0), maps.probability[0, 0].argmax(0)
    title = f"this case, {case_id}\n{name} as predicted, like {name}: {100 * one.found.posterior[annotator]:.0f} %"
    views = [_outlined(image, own, consensus, one.center, title, one.departure, sources, one.box)]
    if sources.cases is not None:
        views += [_view(patch, sources) for patch in one.patches]
    sentences = (one.sentence(sources.annotators, sources.names), one.counterfactual(sources.annotators, sources.names))
    text = "\n".join(
        textwrap.fill(sentence, 36 * max(len(views), 3)) for sentence in [*sentences, *_missing(one, sources)]
    )
    return why_figure(views, modalities, text)


def _missing(one: RegionWhy, sources: TrainingCases) -> list[str]:
    """Say why no training patch is shown, and where they are."""
    if not one.patches:
        return ["There is no training patch that shows this habit."]
    if sources.cases is not None:
        return []
    places = "; ".join(f"case {p.case} at voxel {p.voxel}, similarity {p.similarity:.2f}" for p in one.patches)
    return [f"The training cases are not at hand. The patches it is most like, by number of the case: {places}."]


def _view(patch: TrainingPatch, sources: TrainingCases) -> PatchView:
    own, consensus = sources.drawn(patch)
    words = textwrap.fill(f"{sources.annotators[patch.annotator]} {patch.departure.words(sources.names)}", 34)
    weak = " (weak)" if patch.similarity < WEAK else ""
    title = f"training case {sources.name(patch.case)}\nsimilarity {patch.similarity:.2f}{weak}\n{words}"
    image = sources[patch.case]["image"]
    return _outlined(image, own, consensus, patch.voxel, title, patch.departure, sources)


def _outlined(
    image: MetaTensor,
    own: Tensor,
    consensus: Tensor,
    voxel: Sequence[int],
    title: str,
    departure: Departure,
    sources: TrainingCases,
    box: Box | None = None,
) -> PatchView:
    """Outline what differs: one class where tissues are told apart otherwise, and all tissue elsewhere."""
    one = departure.label if departure.kind == "class" else None
    masks = [classes > 0 if one is None else classes == one for classes in (own, consensus)]
    words = "all tissue" if one is None else sources.names[one]
    view = patch_view(image, masks[0], masks[1], voxel, f"{title}\noutlined: {words}", box)
    # without a word, a missing outline looks like a defect of the picture
    return view if view.own.any() else replace(view, title=f"{view.title}; none by the annotator here")


def _shares(annotators: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(annotators, values, strict=True)}
