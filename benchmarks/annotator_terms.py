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

"""The terms that train the networks of ``annotator_tendency.py``: those of the method, and those of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from annotator_arms import SINGLE
from torch import Tensor

from monai_rrr.attribution import Trace
from monai_rrr.objectives import (
    AnnotatorMixture,
    AnnotatorSegmentation,
    ConsensusSegmentation,
    KernelDiversity,
    KernelTie,
    Objective,
    PrototypeContrast,
    PrototypeDistance,
    Ramp,
    SignedDistance,
    TendencyParsimony,
)

__all__ = ["drawn_logits", "objective_of", "tendency_objective"]

DRAWS = 8


def drawn_logits(trace: Trace, draws: int) -> Tensor:
    """Samples of the logits ``S B C DHW`` of a stochastic network."""
    mean, factor = trace.logits, trace.features["factor"]
    batch = len(mean)
    common = torch.einsum("sbk,bkcdhw->sbcdhw", torch.randn(draws, batch, factor.shape[1]), factor)
    own = torch.randn(draws, *mean.shape) * (0.5 * trace.features["log_deviation"].clamp(-10, 10)).exp()
    return mean + common + own


@dataclass(frozen=True)
class StochasticLikelihood:
    """Monte Carlo likelihood of what each annotator drew, per voxel; names do not count."""

    layers: tuple[str, ...] = ("log_deviation", "factor")

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        logarithm = drawn_logits(trace, DRAWS).log_softmax(2)
        label = batch["annotations"].long()
        index = label.clamp(min=0)[None].expand(DRAWS, -1, -1, -1, -1, -1)
        score = (logarithm.gather(2, index) * (label >= 0)).flatten(3).sum(3)
        voxels = label[0, 0].numel()
        value = (score.logsumexp(0) - log(DRAWS)) / voxels
        drawn = batch["annotated"].to(value.dtype)
        return -(value * drawn).sum() / drawn.sum().clamp(min=1)


@dataclass(frozen=True)
class PublishedConfusion:
    """Cross-entropy as the published code has it: of probabilities, as if they were logits."""

    layers: tuple[str, ...] = ("annotator_logits",)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        probability, label = trace.features["annotator_logits"].exp(), batch["annotations"].long()
        value = F.cross_entropy(probability.flatten(0, 1), label.flatten(0, 1), ignore_index=-1, reduction="none")
        known = (label >= 0).flatten(0, 1)
        return (value * known).sum() / known.sum().clamp(min=1)


@dataclass(frozen=True)
class MatrixTrace:
    """Mean trace of the confusion matrices of who drew, which is to be small."""

    layers: tuple[str, ...] = ("confusion",)

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss."""
        mean = trace.features["confusion"].diagonal(dim1=2, dim2=3).sum(-1).flatten(2).mean(2)
        drawn = batch["annotated"].to(mean.dtype)
        return (mean * drawn).sum() / drawn.sum().clamp(min=1)


def objective_of(options: Mapping[str, Any]) -> Objective:
    """The terms of an arm."""
    arm = options["arm"]
    if arm in SINGLE:
        return Objective({"consensus": ConsensusSegmentation()})
    if arm == "separate":
        return Objective({"segmentation": AnnotatorSegmentation()})
    if arm in ("film", "heads"):
        return Objective({"segmentation": AnnotatorSegmentation(), "consensus": ConsensusSegmentation()})
    if arm == "ssn":
        return Objective({"likelihood": StochasticLikelihood()})
    if arm == "cm_published":
        return Objective({"segmentation": PublishedConfusion(), "trace": MatrixTrace()}, {"trace": 0.1})
    if arm == "cm_corrected":
        return Objective({"segmentation": AnnotatorSegmentation(), "trace": MatrixTrace()}, {"trace": 0.01})
    return tendency_objective(options.get("without", ()), bool(options.get("shuffled")))


def tendency_objective(without: Sequence[str], shuffled: bool) -> Objective:
    """The terms of the method, those of the bundle, some left out for an ablation."""
    terms: dict[str, Any] = {
        "segmentation": AnnotatorSegmentation(),
        "consensus": ConsensusSegmentation(),
        "mixture": AnnotatorMixture(),
        "tie": KernelTie(shuffled=shuffled),
        "contrast": PrototypeContrast(),
        "distance": PrototypeDistance(),
        "diversity": KernelDiversity(),
        "parsimony": TendencyParsimony(),
        "signed_distance": SignedDistance(),
    }
    weights: dict[str, Any] = {
        "mixture": Ramp(0.5, 0.2, 0.2),
        "tie": Ramp(0.1, 0.1, 0.4),
        "contrast": Ramp(0.05, 0.2, 0.2),
        "distance": Ramp(0.01, 0.2, 0.2),
        "diversity": 0.01,
        "parsimony": 0.01,
        "signed_distance": 0.2,
    }
    kept = [name for name in terms if name not in without]
    return Objective({name: terms[name] for name in kept}, {n: w for n, w in weights.items() if n in kept})
