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

"""Training and scoring of one configuration of ``annotator_tendency.py``, all arms in MONAI's ``SupervisedTrainer``."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from annotator_arms import SINGLE, ConsensusNet, build, start_from
from annotator_bank import attach_bank
from annotator_consensus import consensus_of
from annotator_data import Cohort, add_annotator_to, keep_some, permute_names
from annotator_scores import evaluate
from annotator_terms import objective_of
from monai.data import Dataset, set_track_meta
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.transforms import Compose, RandFlipd, RandScaleIntensityd
from monai.utils import set_determinism
from torch import nn
from torch.utils.data import DataLoader

from monai_rrr.attribution import record
from monai_rrr.engines import PrepareAnnotations, explanation_update
from monai_rrr.handlers import AnnotatorTemperature, ConsensusUpdate, PrototypeUpdate, TendencySchedule, TendencyStages
from monai_rrr.inferers import AnnotatorInferer
from monai_rrr.metrics import TopLabelCalibration
from monai_rrr.objectives import AnnotatorSegmentation, Objective
from monai_rrr.transforms import BandedConsensus

__all__ = ["DEFAULTS", "run"]

DEFAULTS: dict[str, Any] = {
    "channels": (16, 32, 32),
    "features": 12,
    "width": 32,
    "slots": 4,
    "stride": 2,
    "voxels": 1024,
    "start_steps": 2400,  # on the votes, the same for all arms
    "start_lr": 1e-2,
    "steps": 320,  # of the arm itself
    "batch_size": 1,
    "lr": 1e-2,
    "gamma_lr": 10.0,  # times lr
    "stages": (0.2, 0.7, 0.75),
}


def batch_as_it_is(batchdata: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
    """``prepare_batch`` of arms without prototypes: the consensus is in the cases already."""
    return dict(batchdata)


def loader_of(cases: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> DataLoader[Any]:
    """Batches of cases, mirrored and scaled at random."""
    spatial = [
        RandFlipd(["image", "annotations", "consensus"], 0.5, spatial_axis=axis, allow_missing_keys=True)
        for axis in range(3)
    ]
    augment = Compose([*spatial, RandScaleIntensityd("image", factors=0.1, prob=0.5, channel_wise=True)])
    augment.set_random_state(config["seed"])
    order = torch.Generator().manual_seed(config["seed"])
    # whole rounds of the cohort, so that small parts of it are seen as often as large ones
    return DataLoader(Dataset(cases, augment), config["batch_size"], shuffle=True, drop_last=True, generator=order)


def trainer_of(
    network: nn.Module, cases: Sequence[Any], config: Mapping[str, Any], objective: Objective, prepare: Any
) -> SupervisedTrainer:
    """The trainer of all arms; handlers of the method are added to it."""
    loader = loader_of(cases, config)
    epochs = -(-config["steps"] // len(loader))
    # gamma starts at 0 and has to move as far as a logit, in steps of the learning rate
    gammas = [p for name, p in network.named_parameters() if p.requires_grad and name.endswith(".gamma")]
    others = [p for name, p in network.named_parameters() if p.requires_grad and not name.endswith(".gamma")]
    groups = [{"params": others, "lr": config["lr"]}]
    if gammas:
        groups.append({"params": gammas, "lr": config["lr"] * config["gamma_lr"], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=epochs * len(loader), pct_start=0.1)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=objective,
        prepare_batch=prepare,
        iteration_update=explanation_update,
        train_handlers=[LrScheduleHandler(schedule, print_lr=False, epoch_level=False)],
        decollate=False,
    )


def train(network: nn.Module, cohort: Cohort, config: Mapping[str, Any]) -> float:
    """Train in place; return the seconds of a step."""
    cases, arm = cohort.cases(), config["arm"]
    if arm == "ours":
        kernels, push, tune = config["stages"]
        schedule = TendencySchedule(kernels, push, tune)
        prepare = PrepareAnnotations(spacing=(cohort.spacing,) * 3, voxels=config["voxels"], seed=config["seed"])
        trainer = trainer_of(network, cases, config, objective_of(config), prepare)
        TendencyStages(network, trainer.optimizer, schedule).attach(trainer)
        attach_bank(trainer, network, DataLoader(cases, 4), prepare, schedule, config)  # type: ignore[arg-type]
        if config.get("estimate") == "em":
            ConsensusUpdate(network, cases, BandedConsensus((cohort.spacing,) * 3)).attach(trainer)
    else:
        how = SINGLE.get(arm, "vote")
        for case, consensus in zip(cases, consensus_of(cohort.masks, cohort.spacing, how), strict=True):
            case["consensus"] = consensus
        trainer = trainer_of(network, cases, config, objective_of(config), batch_as_it_is)
    begin = time.perf_counter()
    trainer.run()
    return (time.perf_counter() - begin) / trainer.state.iteration


def started(cohort: Cohort, config: Mapping[str, Any]) -> ConsensusNet:
    """The network on the votes at which all arms begin; trained once and kept in a file."""
    shared = {**config, "arm": "vote", "lr": config["start_lr"], "steps": config["start_steps"]}
    network: ConsensusNet = build(shared, cohort.annotators)  # type: ignore[assignment]
    path = config.get("start")
    if path and Path(path).exists():
        network.load_state_dict(torch.load(path, weights_only=True))
    elif config["start_steps"]:
        train(network, cohort, shared)
        if path:
            torch.save(network.state_dict(), path)
    return network


def fit_newcomer(network: Any, cohort: Cohort, config: Mapping[str, Any]) -> int:
    """Fit the annotator at the end of the cohort on its few cases, all else frozen; return how many numbers.

    Kernels begin at prototypes of where the new one deviates from the consensus that the network gives, plain heads
    at the head of the consensus.
    """
    cases = cohort.cases()
    with torch.no_grad():
        for case in cases:
            trace = record(network.eval(), case["image"][None], ())
            case["consensus"] = trace.logits[0].softmax(0)
    if config["arm"] == "ours":
        added = network.add_annotator(cohort.annotators[-1])
        prepare = PrepareAnnotations(spacing=(cohort.spacing,) * 3, voxels=config["voxels"], seed=config["seed"])
        PrototypeUpdate(network, DataLoader(cases, 1), prepare, seed=config["seed"]).push()  # type: ignore[arg-type]
        prototype = network.tendency_bank.prototype[-4:]
        weight = network.tendencies[-1].weight
        weight.data.copy_(torch.where(prototype.square().sum(-1, keepdim=True) > 0, prototype, weight))
    else:
        network.requires_grad_(False)
        network.heads.append(copy.deepcopy(network.consensus_head).requires_grad_(True))
        added = list(network.heads[-1].parameters())
    own = {**config, "lr": config["newcomer_lr"], "steps": config["newcomer_steps"], "batch_size": 1}
    trainer_of(network, cases, own, Objective({"segmentation": AnnotatorSegmentation()}), batch_as_it_is).run()
    return sum(p.numel() for p in added)


def calibrated(network: Any, cohort: Cohort, test_cohort: Cohort) -> dict[str, Any]:
    """Cross-entropy and calibration error of the own versions, before and after the choice of temperatures."""
    found: dict[str, Any] = {"before": certainty(network, test_cohort)}
    network.temperatures.copy_(AnnotatorTemperature(network, AnnotatorInferer(), DataLoader(cohort.cases())).solve())  # type: ignore[arg-type]
    found["temperatures"] = [round(value, 4) for value in network.temperatures.tolist()]
    return {**found, "after": certainty(network, test_cohort)}


@torch.no_grad()
def certainty(network: Any, cohort: Cohort) -> dict[str, list[float]]:
    """Per case: cross-entropy, and how far apart confidence and accuracy are (ten bins of confidence), own versions."""
    inferer, found = AnnotatorInferer(), defaultdict(list)
    for case in cohort.cases():
        image = case["image"][None]
        brain = (image != 0).any(1)[0]
        probability = inferer(image, network.eval())[0, 1:, :, brain].transpose(1, 2).flatten(0, 1)
        drawn = case["annotations"][:, brain].long().flatten()
        found["cross_entropy"].append(float(F.nll_loss(probability.clamp(min=1e-12).log(), drawn)))
        calibration = TopLabelCalibration(bins=10)
        calibration(probability, drawn)
        found["calibration_error"].append(float(calibration.aggregate()))
    return {name: [round(value, 6) for value in values] for name, values in found.items()}


def changed(cohort: Cohort, config: Mapping[str, Any]) -> Cohort:
    """The training cases, with the team or its masks changed for a control."""
    control, seed = config.get("control"), config["seed"]
    if control in ("blank", "duplicate"):
        return add_annotator_to(cohort, control)
    if control == "permuted":
        return permute_names(cohort, seed)
    if "observed" in config:
        return keep_some(cohort, config["observed"], seed)
    return cohort


def run(train_cohort: Cohort, test_cohort: Cohort, config: Mapping[str, Any], newcomer: Cohort | None = None) -> Any:
    """Train and score one configuration.

    Args:
        train_cohort: cases to train on.
        test_cohort: cases to score; all annotators drew them.
        config: ``arm``, ``seed``, and what differs from ``DEFAULTS``; ``control``, ``observed``, ``estimate``,
            ``without``, ``shuffled``, ``centered``, ``bank`` and others make variants; ``calibrated`` is how many
            training cases are kept for the temperatures.
        newcomer: cases of the annotator at the end, who comes later.
    """
    config = {**DEFAULTS, **config}
    set_determinism(seed=config["seed"])
    torch.use_deterministic_algorithms(False)
    set_track_meta(False)
    cohort = changed(train_cohort, config)
    if config.get("control") in ("blank", "duplicate"):
        test_cohort = add_annotator_to(test_cohort, config["control"])
    start = started(cohort, config)
    set_determinism(seed=config["seed"])
    torch.use_deterministic_algorithms(False)
    network = build(config, cohort.annotators)
    start_from(network, start)
    if not config.get("centered", True):
        network.rho.zero_()  # type: ignore[operator, union-attr]
    parameters = sum(p.numel() for p in network.parameters())
    kept = cohort
    if "calibrated" in config:
        kept = cohort.part(range(config["calibrated"], len(cohort)))
    seconds = train(network, kept, config)
    result: dict[str, Any] = {"parameters": parameters, "step_seconds": round(seconds, 4), "cases": len(cohort)}
    if newcomer is not None:
        result["newcomer"] = {}
        for count in config["newcomer"]:
            later = copy.deepcopy(network)
            added = fit_newcomer(later, newcomer.part(range(count)), config)
            scores = evaluate(later, test_cohort, config)
            own = {name: [row[-1] for row in scores[name]] for name in ("dice", "gain", "ceiling")}
            result["newcomer"][count] = {"added": added, **own}
        test_cohort = test_cohort.team(range(len(cohort.annotators)))
    result |= evaluate(network, test_cohort, config)
    if "calibrated" in config:
        result["calibration"] = calibrated(network, cohort.part(range(config["calibrated"])), test_cohort)
    return {**result, "config": dict(config)}
