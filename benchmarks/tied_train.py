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

"""One run of ``tied_autoencoder.py``: train an arm on a cohort of which some cases have masks, and score it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from monai.data import set_track_meta
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.metrics import DiceMetric
from monai.transforms import Compose
from monai.utils import set_determinism
from tied_arms import build, scale_parameters
from tied_data import REGIONS, Cohort, augmentation, batch_of
from torch import Tensor, nn
from torch.utils.data import BatchSampler, RandomSampler

from monai_rrr.attribution import Trace, record
from monai_rrr.data import MixedBatchSampler, keep_labels
from monai_rrr.objectives import ImageTags, Objective, TiedSegmentation

__all__ = ["DEFAULTS", "run"]

DEFAULTS: dict[str, Any] = {
    "filters": (8, 16, 32, 32),
    "steps": 300,
    "batch_size": 4,
    "lr": 3e-3,
    "scale_lr": 10.0,  # times lr, for scale and offset of maps
    "sampling": "repeated",  # how the first figures came about; mixed: other batches in every pass through the cases
    "input": "unit",
    "amp": False,
}
LAYER = "segmentation"


def objective_of(arm: str) -> Objective:
    """The terms of an arm: tags, masks, or both."""
    terms: dict[str, Any] = {} if arm == "unet" else {"tags": ImageTags()}
    if arm != "classifier":
        terms["masks"] = TiedSegmentation(layer=LAYER)
    return Objective(terms)


def batches(has_mask: list[bool], arm: str, config: Mapping[str, Any]) -> Iterator[list[int]]:
    """Indices of the cases of each step; the same for all arms but nnU-Net's, which sees cases with masks only."""
    size, seed = config["batch_size"], config["seed"]
    if arm == "dynunet":
        masked = [i for i, known in enumerate(has_mask) if known]
        draw = RandomSampler(masked, True, size * config["steps"], torch.Generator().manual_seed(seed))
        yield from ([masked[i] for i in chosen] for chosen in BatchSampler(draw, size, True))
        return
    if config["sampling"] == "proportional":
        generator = torch.Generator().manual_seed(seed)
        sampler: Any = BatchSampler(RandomSampler(has_mask, generator=generator), size, True)
    else:
        sampler = MixedBatchSampler(has_mask, size, seed=seed)
    for epoch in count():
        if config["sampling"] == "mixed":
            sampler.set_epoch(epoch)
        yield from sampler


def deep_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Dice and cross-entropy of exclusive classes at several levels, those of nnU-Net."""
    classes = batch["label"].sum(1, keepdim=True).long()  # nested regions: 0 background, 1 edema, 2 core, 3 enhancing
    loss = DeepSupervisionLoss(DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True))
    found: Tensor = loss(list(logits.unbind(1)), classes)
    return found


def train(network: nn.Module, cohort: Cohort, has_mask: list[bool], config: Mapping[str, Any]) -> float:
    """Train in place and return the seconds of a step."""
    arm, device = config["arm"], cohort.image.device
    objective, tags = objective_of(arm), cohort.tags
    known = torch.tensor(has_mask, device=device)
    scales = scale_parameters(network)
    weights = [p for p in network.parameters() if not any(p is scale for scale in scales)]
    groups = [{"params": weights, "lr": config["lr"]}]
    if scales:
        groups.append({"params": scales, "lr": config["lr"] * config["scale_lr"], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], config["steps"], pct_start=0.1
    )
    augment: Compose = augmentation(arm == "dynunet", config["seed"])
    order = batches(has_mask, arm, config)
    network.train()
    begin = time.perf_counter()
    for _ in range(config["steps"]):
        index = next(order)
        batch = batch_of(cohort, index, augment)
        batch |= {"class_label": tags[index], "has_mask": known[index]}
        if device.type == "cpu":
            batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, torch.bfloat16, enabled=config["amp"]):
            trace = record(network, batch["image"], () if arm == "classifier" else (LAYER,))
        loss = deep_loss(trace.logits.float(), batch) if arm == "dynunet" else objective(trace, batch)[0]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
        schedule.step()
    float(loss.detach())  # waits for the device
    return (time.perf_counter() - begin) / config["steps"]


def segmented(arm: str, trace: Trace) -> Tensor:
    """Regions ``BKHWD`` of a prediction."""
    if arm != "dynunet":
        return trace.features[LAYER] > 0
    classes = trace.logits.argmax(1, keepdim=True)
    return torch.cat([classes >= 1, classes >= 2, classes == 3], 1)


@torch.no_grad()
def evaluate(network: nn.Module, cohort: Cohort, arm: str, batch_size: int = 4) -> dict[str, Any]:
    """Dice per case and region, NaN where the mask is empty; volume said to be tumor, as a share of the brain."""
    network.eval()
    dice, scores, volume = DiceMetric(reduction="none", ignore_empty=True), [], []
    for start in range(0, len(cohort), batch_size):
        batch = batch_of(cohort, range(start, min(start + batch_size, len(cohort))), None)
        trace = record(network, batch["image"], () if arm == "classifier" else (LAYER,))
        if arm != "classifier":
            found = segmented(arm, trace) * batch["brain"]
            dice(found, batch["label"])
            volume.append(found.flatten(2).sum(2) / batch["brain"].flatten(2).sum(2))
        if arm not in ("unet", "dynunet"):
            scores.append(trace.logits.float())
    result: dict[str, Any] = {"case_id": list(cohort.case_id), "tags": cohort.tags.tolist()}
    if scores:
        result["logits"] = torch.cat(scores).tolist()
    if volume:
        result["dice"] = [[None if v != v else round(v, 5) for v in row] for row in dice.aggregate().tolist()]
        result["volume"] = torch.cat(volume).tolist()
    return result


def run(train_cohort: Cohort, test_cohort: Cohort, config: Mapping[str, Any]) -> dict[str, Any]:
    """Train and score one configuration.

    Args:
        train_cohort: cases to train on, all with tags.
        test_cohort: cases to score.
        config: ``arm``, ``share`` of cases with masks, ``seed``, and what differs from ``DEFAULTS``; options of the
            network by name, see ``tied_arms.build``.
    """
    config = {**DEFAULTS, **config}
    set_determinism(seed=config["seed"])
    # determinism of convolutions costs much and is not needed for means over runs
    torch.use_deterministic_algorithms(False)
    set_track_meta(False)
    torch.backends.cudnn.benchmark = True
    device = train_cohort.image.device
    scaled = [cohort.part(range(len(cohort)), config["input"]) for cohort in (train_cohort, test_cohort)]
    network = build(config).to(device)
    if device.type == "cpu":  # nearly twice as fast for few channels
        network.to(memory_format=torch.channels_last_3d)
    listed = [{"case_id": name, "label": name} for name in train_cohort.case_id]
    has_mask = ["label" in case for case in keep_labels(listed, config["share"], config["seed"])]
    seconds = train(network, scaled[0], has_mask, config)
    result = evaluate(network, scaled[1], config["arm"])
    if scale_parameters(network):
        result["scales"] = {name: getattr(network, name).tolist() for name in ("scale", "offset")}
    return {
        **result,
        "config": dict(config),
        "regions": list(REGIONS),
        "masks": sum(has_mask),
        "parameters": sum(p.numel() for p in network.parameters()),
        "step_seconds": round(seconds, 5),
    }
