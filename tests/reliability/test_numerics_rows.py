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

"""Derivatives of losses on heatmaps: right, finite, the same in bfloat16, and without a trace in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR, UNet
from torch import Tensor, nn

from monai_rrr.attribution import CAM, GradCAM, normalize_l2, record
from monai_rrr.engines import PrepareViews, explanation_update
from monai_rrr.inferers import HeatmapInferer
from monai_rrr.losses import HeatmapDistanceLoss
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.objectives import (
    CrossModalEquivariance,
    MutualLearning,
    Nesting,
    Objective,
    TagClassification,
    WithinModalEquivariance,
)
from monai_rrr.transforms import RandomWarp


def plain(dims: int) -> tuple[nn.Module, str]:
    conv, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if dims == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
    layers = [conv(1, 2, 3, padding=1), nn.Softplus(), conv(2, 2, 3), nn.Softplus(), pool(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(2, 2)), "1"


def unet(dims: int) -> tuple[nn.Module, str]:
    return UNet(dims, 1, 2, (2, 2), (2,), act="tanh", norm="instance"), "model.0"


def segresnet(dims: int) -> tuple[nn.Module, str]:
    options = {"blocks_down": (1, 1), "blocks_up": (1,), "norm": ("group", {"num_groups": 1}), "act": "tanh"}
    return SegResNet(dims, 2, 1, 2, **options), "down_layers.1"


class Bound(nn.Module):
    """A network one of whose weights is given with the image, so that derivatives to it can be checked."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, image: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(self.network, {self.name: weight}, (image,))


NETWORKS = {"plain": plain, "unet": unet, "segresnet": segresnet}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_r1_derivatives(make: Callable[[int], tuple[nn.Module, str]], dims: int) -> None:
    """The loss is a function of a gradient: its first and second derivatives are second and third ones."""
    torch.manual_seed(0)
    network, layer = make(dims)
    network = network.double().eval()
    image = torch.randn(1, 1, *(6,) * 2 if dims == 2 else (4,) * 3, dtype=torch.float64, requires_grad=True)
    name, parameter = next((n, p.detach().clone()) for n, p in network.named_parameters() if p.ndim > 2)
    bound = Bound(network, name)

    def loss(image: Tensor, weight: Tensor) -> Tensor:
        trace = record(bound, image, [f"network.{layer}"], weight=weight)
        heatmap = normalize_l2(GradCAM(f"network.{layer}", relu=False)(trace, torch.tensor([1])))
        target = torch.linspace(0, 1, heatmap.numel(), dtype=torch.float64).view_as(heatmap)
        return HeatmapDistanceLoss("relative")(heatmap, target)

    weight = parameter.requires_grad_(True)
    assert torch.autograd.gradcheck(loss, (image, weight), atol=1e-6, fast_mode=True)
    # training needs the derivative of the loss; torch 2.13 has no right third derivative through instance statistics
    if make is not unet:
        assert torch.autograd.gradgradcheck(loss, (image, weight), atol=1e-5, fast_mode=True)


TERMS = {
    "classification": TagClassification(),
    "within": WithinModalEquivariance(),
    "cross": CrossModalEquivariance(weighting="uniform"),
    "cross_relative": CrossModalEquivariance(weighting="uniform", reduction="relative"),
    "mutual": MutualLearning(),
    "nesting": Nesting(),
}


def linear_network(channels: int, weights: Tensor, head: Tensor) -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv3d(1, channels, 1, bias=False), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, 1, bias=False)
    ).double()
    with torch.no_grad():
        network[0].weight.copy_(weights.view(-1, 1, 1, 1, 1))
        network[3].weight.copy_(head.view(1, -1))
    return network


def test_r2_closed_form() -> None:
    """Linear model: the heatmap is (w . v) x / n, so the mean square in a mask and its gradient are known."""
    generator = torch.Generator().manual_seed(1)
    w, v = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2))
    image = torch.randn(1, 1, 4, 5, 6, generator=generator, dtype=torch.float64)
    outside = torch.rand(1, 1, 4, 5, 6, generator=generator) > 0.4
    network = linear_network(5, w, v)
    heatmap = GradCAM("0", relu=False)(record(network, image, ["0"]), torch.tensor([0]))
    n, product = image.numel(), float(w @ v)
    torch.testing.assert_close(heatmap.detach(), product * image / n, rtol=1e-12, atol=0)
    penalty = HeatmapDistanceLoss("mean_square")(heatmap, torch.zeros_like(heatmap), outside)
    square = image[outside].square().mean() / n**2
    penalty.backward()
    assert abs(float(penalty.detach()) / float(product**2 * square) - 1) < 1e-10
    torch.testing.assert_close(network[0].weight.grad.flatten(), 2 * product * square * v, rtol=1e-10, atol=0)
    torch.testing.assert_close(network[3].weight.grad.flatten(), 2 * product * square * w, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", HeatmapDistanceLoss.kinds)
@pytest.mark.parametrize("fill", [0.0, 1.0], ids=["empty", "full"])
def test_r3_masks(kind: str, fill: float) -> None:
    """Batch 1, one class; an empty mask gives exactly 0, a full one something finite; gradients are finite."""
    network = linear_network(3, torch.ones(3), torch.ones(3))
    for image in (torch.rand(1, 1, 4, 4, 4).double(), torch.zeros(1, 1, 4, 4, 4).double()):
        heatmap = GradCAM("0")(record(network, image, ["0"]), torch.tensor([0]))
        loss = HeatmapDistanceLoss(kind)(heatmap, heatmap.detach().flip(2), torch.full_like(image, fill))
        network.zero_grad()
        loss.backward()
        assert torch.isfinite(loss)
        assert fill or float(loss.detach()) == 0.0
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())


def views(tag: float, brain: bool, seed: int = 0) -> dict[str, Any]:
    """One sample and its second view; one class or three, tagged or not."""
    torch.manual_seed(seed)
    batch = {
        "image": torch.randn(1, 2, 8, 8, 4),
        "brain": torch.full((1, 1, 8, 8, 4), brain),
        "present": torch.ones(1, 2, dtype=torch.bool),
        "class_label": torch.full((1, 3), tag),
        "slice_label": torch.full((1, 3, 4), tag),
        "iteration": 1,
    }
    return PrepareViews(RandomWarp(seed=0))(batch, "cpu", False)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("tag", [0.0, 1.0])
@pytest.mark.parametrize("brain", [True, False])
def test_r3_terms(term: str, tag: float, brain: bool) -> None:
    network, batch = MultimodalCAMNet(["a", "b"], channels=(4,)), views(tag, brain)
    network.zero_grad()
    trace = record(network, batch["image"], TERMS[term].layers, present=batch["present"])
    loss = TERMS[term](trace, batch)
    assert torch.isfinite(loss)
    if term.startswith(("within", "cross")) and not (tag and brain):
        assert float(loss.detach()) == 0.0, "no evidence to compare"
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())


COMPATIBLE = {
    "UNet": (lambda: UNet(3, 1, 2, (4, 8), (2,)), 16, "model.0"),
    "SegResNet": (lambda: SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)), 16, "down_layers.1"),
    "DynUNet": (lambda: DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), (4, 8, 16)), 16, "bottleneck"),
    "UNETR": (
        lambda: UNETR(1, 2, (32, 32, 32), feature_size=4, hidden_size=24, mlp_dim=24, num_heads=2),
        32,
        "encoder2.blocks.0.0",
    ),
    "SwinUNETR": (
        lambda: SwinUNETR(1, 2, depths=(1, 1, 1, 1), feature_size=12, use_checkpoint=True),
        64,
        "swinViT.patch_embed",
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning")
@pytest.mark.parametrize("name", COMPATIBLE)
def test_r5_compatibility(name: str, record_property: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss on Grad-CAM trains MONAI's networks; parameters that it and the logits leave out are listed."""
    make, size, layer = COMPATIBLE[name]
    torch.manual_seed(0)
    network = make()
    trace = record(network, torch.rand(1, 1, size, size, size), [layer])
    heatmap = GradCAM(layer, relu=False)(trace, torch.tensor([1]))
    loss = HeatmapDistanceLoss()(normalize_l2(heatmap), torch.ones_like(heatmap)) + trace.logits.square().mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    idle = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    record_property("parameters_without_gradient", idle)
    with capsys.disabled():
        print(f"\n{name}: {len(idle)} parameters without gradient: {', '.join(idle[:3])} ...")
    if name == "UNETR":
        assert len(idle) == 24
        assert all("norm_cross_attn" in key or "cross_attn" in key for key in idle)


def test_r6_bfloat16() -> None:
    """Features in bfloat16, losses in float32: each term within 1 % and their sum near that of float32."""
    objective = Objective({name: TERMS[name] for name in ("classification", "within", "cross", "mutual")})
    found = {}
    for amp in (False, True):
        torch.manual_seed(0)
        network, batch = MultimodalCAMNet(["a", "b"], channels=(8,)), views(1.0, True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            trace = record(network, batch["image"], objective.layers, present=batch["present"])
        total, terms = objective(trace, batch)
        assert all(value.dtype == torch.float32 for value in terms.values())
        found[amp] = float(total.detach())
    assert abs(found[True] / found[False] - 1) < 1e-3


def test_r6_attribution_in_float32_under_autocast() -> None:
    network = plain(3)[0]
    image, values = torch.rand(2, 1, 8, 8, 8), []
    for amp in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            heatmap = normalize_l2(GradCAM("1")(record(network, image, ["1"]), torch.tensor([0, 0])))
            target = torch.ones_like(heatmap) / heatmap[0].numel() ** 0.5
            values.append(float(HeatmapDistanceLoss("cosine")(heatmap, target).detach()))
        assert heatmap.dtype == torch.float32
    assert values[1] == pytest.approx(values[0], rel=1e-2, abs=1e-3)


class Overflow:
    """A term of 0 whose gradient overflows, or one that is not there."""

    layers: tuple[str, ...] = ()

    def __init__(self, overflow: bool) -> None:
        self.overflow = overflow

    def __call__(self, trace: Any, batch: Any) -> Tensor:
        zero = trace.logits.sum() * 0
        return zero.sqrt() if self.overflow else zero


def scaled_step(exponent: int, overflow: bool) -> tuple[MultimodalCAMNet, SupervisedTrainer, dict[str, Tensor]]:
    torch.manual_seed(0)
    network = MultimodalCAMNet(["a", "b"], channels=(4,))
    sample = {key: value[0] for key, value in views(1.0, True).items() if isinstance(value, Tensor)}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset([sample]), batch_size=1),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=Objective({"classification": TagClassification(), "other": Overflow(overflow)}),
        prepare_batch=PrepareViews(),
        iteration_update=explanation_update,
        decollate=False,
        amp=True,
        amp_kwargs={"dtype": torch.bfloat16},
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**exponent)
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine, "scaler", scaler))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer.run()
    return network, trainer, before


@pytest.mark.filterwarnings("ignore:.*GradScaler.*")  # 2026-11: MONAI makes a CUDA scaler on CPU, too
@pytest.mark.parametrize("exponent", [0, 10, 16])
def test_r6_scaler(exponent: int) -> None:
    network, trainer, before = scaled_step(exponent, False)
    reference = scaled_step(0, False)[0]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-3, atol=1e-6)
    assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network, trainer, before = scaled_step(exponent, True)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert trainer.scaler.get_scale() == 2.0 ** (exponent - 1)


@pytest.mark.parametrize("attribute", [CAM("1", "6"), GradCAM("1")], ids=["cam", "gradcam"])
def test_r7_evaluator(attribute: Any) -> None:
    """Gradients are on inside the inferer alone; flags and random numbers are as before."""
    network, image = plain(3)[0], torch.rand(1, 1, 6, 6, 6)
    network[0].bias.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    random = torch.random.get_rng_state()
    seen = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": image, "label": image}],
        network=network,
        inferer=HeatmapInferer(attribute, class_idx=1),
        decollate=False,
    )
    network.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    evaluator.run()
    assert seen == [True]
    assert torch.is_grad_enabled()
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not evaluator.state.output["pred"].requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
