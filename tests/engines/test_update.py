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


from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.metrics import compute_dice
from monai.utils import set_determinism
from torch import Tensor, nn

from monai_rrr.attribution.trace import record
from monai_rrr.engines import PrepareViews, explanation_update
from monai_rrr.errors import TrainingError
from monai_rrr.handlers import ReliabilityHandler
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.objectives import (
    CrossModalEquivariance,
    MutualLearning,
    Nesting,
    Objective,
    Ramp,
    TagClassification,
    WithinModalEquivariance,
)
from monai_rrr.transforms.warp import RandomWarp

ITERATION = [
    IterationEvents.FORWARD_COMPLETED,
    IterationEvents.LOSS_COMPLETED,
    IterationEvents.BACKWARD_COMPLETED,
    IterationEvents.MODEL_COMPLETED,
]


def cube(index: int, size=(16, 16, 8)) -> dict[str, Any]:
    """Noise with a bright cube in most samples; two modalities, of which the second shows it better."""
    generator = np.random.default_rng(index)
    image = generator.normal(0, 0.5, (2, *size)).astype(np.float32) + 0.01
    label = np.zeros((1, *size), bool)
    if index % 4:
        x, y, z = generator.integers(1, 9), generator.integers(1, 9), generator.integers(0, 4)
        label[0, x : x + 6, y : y + 6, z : z + 3] = True
    image += np.array([1.0, 2.0], np.float32)[:, None, None, None] * label
    slices = label.any((1, 2)).astype(np.float32)
    return {
        "image": torch.from_numpy(image),
        "brain": torch.ones(1, *size, dtype=torch.bool),
        "present": torch.ones(2, dtype=torch.bool),
        "slice_label": torch.from_numpy(slices),
        "class_label": torch.from_numpy(slices.max(1)),
        "truth": torch.from_numpy(label),
        "case_id": f"case_{index}",
    }


def make_network(**options: Any) -> MultimodalCAMNet:
    set_determinism(0)
    return MultimodalCAMNet(["a", "b"], num_classes=1, **{"channels": (8,), "stride": 1, **options})


def full_objective(**weights: Any) -> Objective:
    terms = {
        "classification": TagClassification(),
        "within_modal": WithinModalEquivariance(),
        "cross_modal": CrossModalEquivariance(),
        "mutual_learning": MutualLearning(),
    }
    defaults = {"cross_modal": Ramp(0.5, stop=0.4), "mutual_learning": 0.5}
    return Objective(terms, {**defaults, **weights})


def make_trainer(network: nn.Module, objective: Any, count: int = 4, epochs: int = 1, **options: Any):
    data = Dataset([cube(i) for i in range(count)])
    settings = {
        "device": torch.device("cpu"),
        "max_epochs": epochs,
        "train_data_loader": DataLoader(data, batch_size=2),
        "network": network,
        "optimizer": torch.optim.Adam(network.parameters(), 5e-3),
        "loss_function": objective,
        "prepare_batch": PrepareViews(RandomWarp(seed=0)),
        "iteration_update": explanation_update,
        "decollate": False,
    }
    return SupervisedTrainer(**{**settings, **options})


def state_of(trainer: SupervisedTrainer) -> list[Tensor]:
    kept = [value.clone() for value in trainer.network.state_dict().values()]
    for state in trainer.optimizer.state.values():
        kept += [value.clone() for value in state.values() if isinstance(value, Tensor)]
    return kept


def test_learning():
    """Tags alone: the classification loss falls and the heatmap finds the cube."""
    network, held_out = make_network(), [cube(i) for i in range(101, 105) if i % 4]
    image, truth = (torch.stack([item[key] for item in held_out]) for key in ("image", "truth"))

    def dice() -> float:
        maps = torch.sigmoid(record(network, image, ["class_maps"]).features["class_maps"][:, 1].detach())
        return max(float(compute_dice((maps > t).float(), truth).mean()) for t in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7))

    before, losses = dice(), []
    trainer = make_trainer(network, full_objective(), count=24, epochs=6)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["terms"]["classification"]))
    )
    ReliabilityHandler(network).attach(trainer)
    trainer.run()
    assert np.mean(losses[-12:]) < 0.75 * np.mean(losses[:12])
    assert dice() > max(0.5, before + 0.2)
    weights = network.reliability()
    assert weights[1, 0] > weights[0, 0], "the modality that shows the cube better is trusted more"


def test_events_output_and_progress():
    network, seen = make_network(), []
    trainer = make_trainer(network, full_objective(), epochs=2)
    for event in ITERATION:
        trainer.add_event_handler(event, lambda e, name=event: seen.append(name))
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(e.state.output))
    trainer.run()
    assert seen == ITERATION * 4
    first, last = outputs[0], outputs[-1]
    assert first["pred"].shape == (4, 2, 1)
    assert first["image"].shape == (4, 2, 16, 16, 8)
    assert first["case_id"] == ["case_0", "case_1"]
    assert "cross_modal" not in first["terms"], "its ramp begins at 0"
    assert set(last["terms"]) == {"classification", "within_modal", "cross_modal", "mutual_learning"}
    assert not any(value.requires_grad for value in (last["loss"], last["pred"], *last["terms"].values()))
    total = last["terms"]["classification"] + last["terms"]["within_modal"]
    total = total + 0.5 * (last["terms"]["cross_modal"] + last["terms"]["mutual_learning"])
    torch.testing.assert_close(last["loss"], total)


def test_nothing_is_left_on_the_network():
    network = make_network()
    make_trainer(network, full_objective()).run()
    assert all(not module._forward_hooks for module in network.modules())
    assert network.training


def final_state(objective: Any, **options: Any) -> list[Tensor]:
    trainer = make_trainer(make_network(), objective, **options)
    trainer.run()
    return state_of(trainer)


def test_weights_of_zero_are_plain_classification_bit_for_bit():
    absent = final_state(Objective({"classification": TagClassification()}))
    zero = final_state(full_objective(within_modal=0.0, cross_modal=0.0, mutual_learning=0.0))
    assert all(torch.equal(a, b) for a, b in zip(absent, zero, strict=True))


def test_equals_the_plain_step_of_supervised_trainer():
    """One view, slab tags only: MONAI's own iteration with a BCE on the logits arrives at the same weights."""
    objective = Objective({"classification": TagClassification(slice_weight=0.0)})
    ours = final_state(objective, prepare_batch=PrepareViews())

    def bce(logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, target[:, None].expand_as(logits))

    def prepare(batch: dict[str, Any], *_: Any, **__: Any) -> tuple[Any, ...]:
        return batch["image"], batch["class_label"], (), {"present": batch["present"]}

    plain = final_state(bce, prepare_batch=prepare, iteration_update=None)
    for one, two in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_runs_are_reproducible():
    one, two = final_state(full_objective(), epochs=2), final_state(full_objective(), epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


class Poison:
    """A term that is not finite in its value, or only in its gradient."""

    layers: tuple[str, ...] = ()

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, trace: Any, batch: Any) -> Tensor:
        if self.kind == "loss":
            return trace.logits.sum() * torch.nan
        return (trace.logits.sum() * 0).sqrt()


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_steps_that_are_not_finite_are_not_taken_and_the_third_raises(kind, caplog):
    trainer = make_trainer(make_network(), Objective({"classification": TagClassification()}))
    trainer.run()
    before = state_of(trainer)
    trainer.loss_function = Objective({"classification": TagClassification(), "bad": Poison(kind)})
    trainer.state.max_epochs = 3
    skipped = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: skipped.append(e.state.output["skipped"]))
    message = (
        rf"\[{kind}-not-finite\] case case_0, case_1, field {kind}: expected a finite {kind}, got nan at iteration 5"
    )
    with pytest.raises(TrainingError, match=message) as caught:
        trainer.run()
    assert caught.value.code == f"{kind}-not-finite"
    assert "terms: classification " in caught.value.message
    assert skipped == [kind, kind]
    assert (trainer.state.skipped, trainer.state.skipped_in_row) == (3, 3)
    assert [f"at iteration {i}" in caplog.text for i in (3, 4)] == [True, True]
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(trainer), strict=True))


def test_options_that_are_not_carried_out_raise_by_name():
    objective = full_objective()
    trainer = make_trainer(make_network(), objective)
    trainer.compile = True
    with pytest.raises(ValueError, match="compile=True is not supported"):
        trainer.run()
    with pytest.raises(ValueError, match="accumulation_steps must be 1, got 2"):
        make_trainer(make_network(), objective, accumulation_steps=2).run()
    with pytest.raises(TypeError, match="loss_function must be an Objective, got MSELoss"):
        make_trainer(make_network(), nn.MSELoss()).run()
    with pytest.raises(TypeError, match=r"prepare_batch must return a dictionary, got tuple: use monai_rrr\.engines"):
        make_trainer(make_network(), objective, prepare_batch=lambda batch, *_, **__: (batch, None)).run()


@pytest.mark.filterwarnings("ignore:.*GradScaler.*")  # 2026-11: MONAI makes a CUDA scaler on CPU, too
def test_autocast_runs_the_network_in_bfloat16_and_the_losses_in_float32():
    network, kinds = make_network(channels=(8, 8)), []
    convolution = network.trunks[0].encoder[0].conv1
    convolution.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    plain = final_state(full_objective(), amp=False)

    class Watch:
        layers = ("class_maps",)

        def __call__(self, trace: Any, batch: Any) -> Tensor:
            kinds.append(trace.features["class_maps"].dtype)
            kinds.append((trace.logits[:1] @ trace.logits[:1].mT).dtype)
            return trace.logits.square().mean()

    objective = full_objective()
    objective = Objective({**objective.terms, "watch": Watch()}, objective.weights)
    trainer = make_trainer(network, objective, amp=True, amp_kwargs={"dtype": torch.bfloat16})
    trainer.run()
    assert kinds[:3] == [torch.bfloat16, torch.float32, torch.float32]
    assert all(torch.isfinite(value).all() for value in state_of(trainer) if value.is_floating_point())
    assert trainer.state.output["loss"].dtype == torch.float32
    assert len(plain) > 0


@pytest.mark.parametrize("nesting", [0.0, 0.1])
def test_all_terms_on_three_classes_and_missing_modalities(nesting):
    set_determinism(0)
    network = MultimodalCAMNet(channels=(4, 6), stride=2)
    image = torch.randn(2, 4, 8, 8, 4)
    present = torch.tensor([[True, True, True, True], [False, True, False, False]])
    batch = {
        "image": image * present[:, :, None, None, None],
        "brain": torch.ones(2, 1, 8, 8, 4, dtype=torch.bool),
        "present": present,
        "class_label": torch.tensor([[1.0, 1, 0], [1, 0, 0]]),
        "slice_label": torch.rand(2, 3, 4).round(),
        "case_id": ["a", "b"],
    }
    terms = {**full_objective().terms, "nesting": Nesting()}
    trainer = make_trainer(network, Objective(terms, {"nesting": nesting}), train_data_loader=[batch])
    trainer.run()
    assert np.isfinite(float(trainer.state.output["loss"]))
    assert ("nesting" in trainer.state.output["terms"]) == (nesting > 0)
