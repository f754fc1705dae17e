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

"""Scores of one trained network of ``annotator_tendency.py`` on cases with the masks of all annotators."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from annotator_arms import SINGLE
from annotator_data import Cohort
from annotator_terms import drawn_logits
from annotator_why import kernels_and_prototypes
from monai.metrics import compute_dice
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from monai_rrr.attribution import annotator_posterior, deviation, disagreement, record
from monai_rrr.inferers import tendency_maps
from monai_rrr.metrics import (
    AnnotatorScores,
    LesionRecall,
    agreement_matrix,
    class_regions,
    estimate_tendency,
    generalized_energy_distance,
    matched_dice,
    set_accuracy,
    threshold_dice,
)
from monai_rrr.networks import AnnotatorTendencyNet

__all__ = ["evaluate"]

LEAST = 8
"""Voxels of a region."""
SAMPLES = 16


@torch.no_grad()
def predict(network: nn.Module, cohort: Cohort, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Predict all cases.

    Returns:
        probabilities of the ``consensus`` ``NCDHW`` and, where there are names, of the ``annotators`` ``NRCDHW``;
        ``samples`` ``NSDHW`` of a stochastic network; ``who`` ``NRDHW``, the ``label`` of the mixture ``NDHW`` and the
        ``embedding`` of the method.
    """
    found: dict[str, list[Tensor]] = {}
    network.eval()
    for image in cohort.image.split(2):
        if isinstance(network, AnnotatorTendencyNet):
            maps = tendency_maps(network, image)
            part = {"consensus": maps.probability[:, 0], "annotators": maps.probability[:, 1:]}
            part |= {"who": maps.who[:, 1:], "label": maps.label, "embedding": maps.embedding}
        elif config["arm"] == "ssn":
            trace = record(network, image, ("log_deviation", "factor"))
            samples = drawn_logits(trace, SAMPLES).argmax(2).transpose(0, 1)
            part = {"consensus": trace.logits.softmax(1), "samples": samples}
        else:
            trace = record(network, image, ("annotator_logits",))
            part = {"consensus": trace.logits.softmax(1)}
            part["annotators"] = trace.features["annotator_logits"].softmax(2)
        for name, value in part.items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in found.items()}


def evaluate(network: nn.Module, cohort: Cohort, config: Mapping[str, Any]) -> dict[str, Any]:
    """All scores, per case where they are; Dice is None for regions that the mask does not show.

    A few voxels in place of none would otherwise count as much as a whole tumor that is missed.
    """
    found = predict(network, cohort, config)
    consensus = found["consensus"].argmax(1)
    truth, drawn = cohort.truth.long(), cohort.masks.long()
    result: dict[str, Any] = {
        "case_id": list(cohort.case_id),
        "annotators": list(cohort.annotators),
        "kinds": list(cohort.kinds),
        "consensus": shown(dice(class_regions(consensus), class_regions(truth)), class_regions(truth)),
    }
    named = "annotators" in found
    versions = found["annotators"].argmax(2) if named else found["samples"]
    if config["arm"] == "ssn" or not config.get("tuning"):
        result |= distribution(versions, drawn)
    if not named:
        return result
    scores = AnnotatorScores(cohort.annotators)
    masks = class_regions(drawn)
    scores(class_regions(versions).float(), masks.float(), consensus=class_regions(consensus).float())
    result["dice"], result["gain"] = (shown(scores.values(name), masks) for name in ("dice", "gain"))
    if config.get("tuning"):
        return result
    votes = torch.stack([(drawn == c).sum(1) for c in range(4)], 1).argmax(1)
    ceiling = dice(class_regions(votes)[:, None].expand_as(masks).flatten(0, 1), masks.flatten(0, 1))
    # what a perfect version gains over the votes
    result["ceiling"] = shown(1 - ceiling.unflatten(0, masks.shape[:2]), masks)
    result["tendency"] = tendencies(versions, drawn, truth, cohort)
    if config["arm"] not in SINGLE:
        result |= who(found["annotators"], drawn, truth, consensus)
    if isinstance(network, AnnotatorTendencyNet):
        result["set_accuracy"] = [
            [value.accuracy, value.chance, value.voxels]
            for value in map(set_accuracy, found["who"], drawn, found["label"])
        ]
        result |= own_scores(network, cohort, found, drawn)
    return result


def distribution(versions: Tensor, drawn: Tensor) -> dict[str, Any]:
    """How well a set of predictions stands for the set of masks, per case: mean over WT, TC and ET."""
    names: dict[str, list[Any]] = {"ged": [], "d_match": [], "d_soft": [], "agreement": []}
    for predicted, masks in zip(versions, drawn, strict=True):
        samples, truths = class_regions(predicted).float(), class_regions(masks).float()
        names["ged"].append(float(generalized_energy_distance(samples, truths).mean()))
        names["d_match"].append(float(matched_dice(samples, truths).mean()))
        names["d_soft"].append(float(threshold_dice(samples.mean(0), truths.mean(0)).mean()))
        if len(samples) == len(truths):
            apart = agreement_matrix(samples).mean(0) - agreement_matrix(truths).mean(0)
            names["agreement"].append(float(torch.linalg.matrix_norm(apart)))
    return {name: [round(value, 5) for value in values] for name, values in names.items()}


def who(probability: Tensor, drawn: Tensor, truth: Tensor, consensus: Tensor) -> dict[str, Any]:
    """Whose mask it is, by case and by region of disagreement, and where an annotator errs.

    ``case_name`` ``NR`` says who is named for each mask; ``region_name`` has a row for each region and annotator: case,
    annotator, voxels, who is named, whether that one drew the same there, share of the annotators who did.
    """
    annotators = probability.shape[1]
    prior = torch.full((annotators,), 1 / annotators)
    apart = disagreement(probability) > 0.2
    cases, regions = [], []
    for b, p in enumerate(probability):
        whole = apart[b].long()
        parts = components(apart[b])
        cases.append([int(annotator_posterior(p, mask, whole, prior).argmax()) for mask in drawn[b]])
        for index in range(1, int(parts.max()) + 1):
            inside = parts == index
            said = drawn[b][:, inside]
            for r in range(annotators):
                named = int(annotator_posterior(p, drawn[b, r], inside.long(), prior).argmax())
                same = (said == said[r]).all(1)
                regions.append([b, r, int(inside.sum()), named, bool(same[named]), float(same.float().mean())])
    odds = deviation(probability, consensus)
    counted = ((drawn > 0).any(1) | (truth > 0)).flatten()
    auroc = []
    for r in range(annotators):
        wrong = (drawn[:, r] != truth).flatten()[counted]
        score = odds[:, r].flatten()[counted]
        auroc.append(round(float(roc_auc_score(wrong, score)), 4) if wrong.any() and not wrong.all() else None)
    return {"case_name": cases, "region_name": regions, "deviation_auroc": auroc}


def components(mask: Tensor) -> Tensor:
    """Connected parts of at least ``LEAST`` voxels, numbered from 1."""
    labels, _ = ndimage.label(mask.numpy())
    sizes = np.bincount(labels.ravel())
    kept = [index for index in range(1, len(sizes)) if sizes[index] >= LEAST]
    number = np.zeros(len(sizes), np.int64)
    number[kept] = np.arange(1, len(kept) + 1)
    return torch.from_numpy(number[labels])


def tendencies(versions: Tensor, drawn: Tensor, truth: Tensor, cohort: Cohort) -> dict[str, Any]:
    """What each annotator tends to do, read off the predictions and off the masks: mm, and core called enhancing."""
    spacings = [(cohort.spacing,) * 3] * len(cohort)
    names: dict[str, list[Any]] = {"true_mm": list(cohort.offsets)}
    for source, masks in (("predicted", versions), ("drawn", drawn)):
        for r in range(len(cohort.annotators)):
            found = estimate_tendency(list(masks[:, r].numpy()), list(truth.numpy()), spacings)
            names.setdefault(f"{source}_mm", []).append(number(found.offset_mm))
            names.setdefault(f"{source}_ncr_as_et", []).append(number(found.confusion[1, 3]))
            names.setdefault(f"{source}_et_as_ed", []).append(number(found.confusion[3, 2]))
            recall = LesionRecall(spacings[0])
            recall((masks[:, r, None] > 0).float(), (truth[:, None] > 0).float())
            counts = recall.counts()[0]
            names.setdefault(f"{source}_small", []).append(counts[:2].sum(0).tolist())
            names.setdefault(f"{source}_large", []).append(counts[2:].sum(0).tolist())
    return names


def own_scores(
    network: AnnotatorTendencyNet, cohort: Cohort, found: Mapping[str, Tensor], drawn: Tensor
) -> dict[str, Any]:
    """Scores of kernels and prototypes, also with random prototypes in their place, as a control."""
    label = found["consensus"].argmax(1)
    result: dict[str, Any] = {"rho": [round(value, 4) for value in network.rho.tolist()]}
    result["gamma"] = [round(float(one.gamma.detach()), 4) for one in network.tendencies]  # type: ignore[arg-type]
    result["scale"] = round(float(network.log_scale.exp()), 3)
    result["why"] = kernels_and_prototypes(network, found["embedding"], drawn, label)
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    for bank in (other.tendency_bank, other.shared_bank):
        there = (bank.prototype.square().sum(-1, keepdim=True) > 0).float()
        noise = torch.randn(bank.prototype.shape, generator=generator)
        bank.prototype.copy_(nn.functional.normalize(noise, dim=-1) * there)
    result["why_random"] = kernels_and_prototypes(other, found["embedding"], drawn, label)
    maps = [tendency_maps(other, image) for image in cohort.image.split(2)]
    chance = [
        [value.accuracy, value.chance, value.voxels]
        for value in map(
            set_accuracy, torch.cat([m.who[:, 1:] for m in maps]), drawn, torch.cat([m.label for m in maps])
        )
    ]
    result["set_accuracy_random"] = chance
    departure = found["annotators"].clamp(min=1e-8).log() - found["consensus"].clamp(min=1e-8).log()[:, None]
    flat = nn.functional.normalize((departure - departure.mean(2, keepdim=True)).transpose(0, 1).flatten(1), dim=1)
    result["departure_cosine"] = [[round(value, 4) for value in row] for row in (flat @ flat.T).tolist()]
    return result


def dice(one: Tensor, other: Tensor) -> Tensor:
    """Dice per case and region; two empty masks agree."""
    found: Tensor = compute_dice(one.float(), other.float(), include_background=True, ignore_empty=False)
    return found


def shown(values: Tensor, masks: Tensor) -> Any:
    """Nested lists, None where a mask is empty."""
    there = masks.flatten(values.ndim).any(values.ndim)
    return nested(torch.where(there, values.double(), torch.nan).round(decimals=5).tolist())


def nested(values: Any) -> Any:
    """NaN as None."""
    if isinstance(values, list):
        return [nested(value) for value in values]
    return None if values != values else values


def number(value: float) -> float | None:
    """A number, NaN as None."""
    return None if np.isnan(value) else round(float(value), 4)
