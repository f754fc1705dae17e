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

"""What a CPU computes, a GPU computes, too: heatmaps, their gradients, warps, whole steps, and a bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.networks.nets import DenseNet121, SegResNet, resnet18
from monai.utils import set_determinism
from torch import Tensor, nn

from monai_rrr.attribution import (
    CAM,
    Attributor,
    ClassMap,
    GradCAM,
    GuidedBackprop,
    HiResCAM,
    InputTimesGradient,
    IntegratedGradients,
    record,
)
from monai_rrr.engines import PrepareViews, explanation_update
from monai_rrr.networks import MultimodalCAMNet, SegmenterClassifier, TiedAutoencoder
from monai_rrr.objectives import (
    AttentionConsistency,
    AttentionMining,
    Classification,
    CrossModalEquivariance,
    MutualLearning,
    Nesting,
    Objective,
    RightReasons,
    TagClassification,
    WithinModalEquivariance,
)
from monai_rrr.transforms import RandomWarp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("default"),  # those of another build of torch are no fault of ours
]

BUNDLES = Path(__file__).parents[2] / "bundles"
ATTRIBUTORS: dict[str, Attributor] = {
    "cam": CAM("class_layers.relu", "class_layers.out"),
    "grad_cam": GradCAM("class_layers.relu"),
    "grad_cam_early": GradCAM("features.denseblock2", relu=False),
    "hirescam": HiResCAM("class_layers.relu"),
    "input_x_gradient": InputTimesGradient("none"),
    "ixg_ln": InputTimesGradient(),
    "guided": GuidedBackprop(),
    "integrated": IntegratedGradients(steps=4, steps_per_pass=2),
}


@pytest.fixture(autouse=True)
def _exact() -> Any:
    """Full float32 products, so that what differs is a fault and not the tensor cores."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def image_batch(size: tuple[int, ...] = (32, 32, 32), channels: int = 2) -> Tensor:
    return torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)) - 0.3


def close(one: Tensor, two: Tensor, tolerance: float = 1e-3) -> None:
    one, two = one.detach().double().cpu(), two.detach().double().cpu()
    assert (one - two).norm() <= tolerance * two.norm() + 1e-9


@pytest.mark.parametrize("name", ATTRIBUTORS)
def test_heatmaps_and_their_gradients(name: str) -> None:
    attribute = ATTRIBUTORS[name]

    def gradients(device: str) -> tuple[Tensor, dict[str, Tensor]]:
        set_determinism(0)
        network = DenseNet121(3, 2, 3, init_features=8, growth_rate=4, block_config=(2, 2, 2, 2)).to(device).eval()
        trace = record(network, image_batch().to(device), attribute.layers)
        heatmap = attribute(trace, torch.tensor([0, 2], device=device))
        assert heatmap.device.type == device
        heatmap.float().square().mean().sqrt().backward()
        return heatmap, {k: p.grad for k, p in network.named_parameters() if p.grad is not None}

    (cpu, cpu_gradients), (gpu, gpu_gradients) = gradients("cpu"), gradients("cuda")
    close(gpu, cpu)
    assert cpu_gradients.keys() == gpu_gradients.keys()
    whole = [torch.cat([g.flatten().cpu() for g in found.values()]) for found in (gpu_gradients, cpu_gradients)]
    assert whole[1].norm() > 0
    close(*whole, tolerance=1e-2)


@pytest.mark.parametrize("encoder", ["ResNet18", "SegResNet"])
def test_decoding_by_relevance(encoder: str) -> None:
    def maps(device: str) -> tuple[Tensor, Tensor]:
        set_determinism(0)
        if encoder == "ResNet18":
            network: nn.Module = resnet18(n_input_channels=2, num_classes=3, conv1_t_stride=1, widen_factor=0.25)
        else:
            network = SegmenterClassifier(SegResNet(3, 8, 2, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)), 3)
        tied = TiedAutoencoder(network, 3).to(device).eval()
        relevance = record(tied, image_batch().abs().to(device), ["relevance"]).features["relevance"]
        relevance.square().mean().sqrt().backward()
        return relevance, torch.cat([p.grad.flatten() for p in tied.parameters() if p.grad is not None])

    (cpu, cpu_gradient), (gpu, gpu_gradient) = maps("cpu"), maps("cuda")
    close(gpu, cpu, 1e-2)
    close(gpu_gradient, cpu_gradient, 3e-2)


def test_warps_of_a_seed_are_the_same() -> None:
    def warped(device: str) -> Tensor:
        views = PrepareViews(RandomWarp(seed=3))
        moved: Tensor = views({**multimodal_batch(), "iteration": 5}, torch.device(device))["image"]
        return moved

    close(warped("cuda"), warped("cpu"), 1e-5)


def multimodal_batch(size: tuple[int, ...] = (32, 32, 8)) -> dict[str, Any]:
    slices = torch.zeros(4, 3, size[2])
    slices[::2, :, 2:5] = 1
    return {
        "image": image_batch((*size,), 4).repeat(2, 1, 1, 1, 1).abs(),
        "brain": torch.ones(4, 1, *size, dtype=torch.bool),
        "present": torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 0, 0]], dtype=torch.bool),
        "class_label": slices.amax(2),
        "slice_label": slices,
    }


def steps(
    network: nn.Module, objective: Objective, batch: Mapping[str, Any], device: str, **options: Any
) -> list[float]:
    """Losses of three steps of MONAI's trainer."""
    prepare = options.pop("prepare", PrepareViews())
    trainer = SupervisedTrainer(
        device=torch.device(device),
        max_epochs=1,
        train_data_loader=[batch] * 3,
        network=network.to(device),
        optimizer=torch.optim.SGD(network.parameters(), 1e-3),
        loss_function=objective,
        prepare_batch=prepare,
        iteration_update=explanation_update,
        decollate=False,
        **options,
    )
    losses: list[float] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output["loss"]))
    )
    trainer.run()
    assert len(losses) == 3
    return losses


def equivariant() -> Objective:
    return Objective(
        {
            "classification": TagClassification(),
            "within_modal": WithinModalEquivariance(ClassMap()),
            "cross_modal": CrossModalEquivariance(ClassMap()),
            "mutual_learning": MutualLearning(),
            "nesting": Nesting(ClassMap()),
        }
    )


def test_steps_of_the_main_method() -> None:
    def run(device: str, **options: Any) -> list[float]:
        set_determinism(0)
        network = MultimodalCAMNet(channels=(16,), stride=2)
        return steps(network, equivariant(), multimodal_batch(), device, prepare=PrepareViews(RandomWarp()), **options)

    cpu = run("cpu")
    assert run("cuda") == pytest.approx(cpu, rel=1e-3)
    assert run("cuda", amp=True, amp_kwargs={"dtype": torch.bfloat16}) == pytest.approx(cpu, rel=5e-2)
    assert run("cuda", amp=True) == pytest.approx(cpu, rel=2e-2)


@pytest.mark.parametrize("name", ["mining", "energy", "consistency", "input"])
def test_steps_of_guided_classifiers(name: str) -> None:
    cam = CAM("layer4", "fc")
    term = {
        "mining": AttentionMining(cam),
        "energy": RightReasons(cam),
        "consistency": AttentionConsistency(cam, InputTimesGradient()),
        "input": RightReasons(InputTimesGradient()),
    }[name]
    generator = torch.Generator().manual_seed(1)
    batch = {
        "image": torch.rand(2, 1, 32, 32, 32, generator=generator),
        "brain": torch.ones(2, 1, 32, 32, 32, dtype=torch.bool),
        "class_label": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "evidence_mask": (torch.rand(2, 2, 32, 32, 32, generator=generator) > 0.9).float(),
        "has_mask": torch.ones(2, dtype=torch.bool),
        "case_id": ["a", "b"],
    }

    def run(device: str, **options: Any) -> list[float]:
        set_determinism(0)
        network = resnet18(n_input_channels=1, num_classes=2, conv1_t_stride=1, widen_factor=0.25)
        network.eval()  # with two images, statistics of a batch are noise
        network.train = lambda mode=True: network  # type: ignore[method-assign]
        return steps(network, Objective({"classification": Classification(), name: term}), batch, device, **options)

    cpu = run("cpu")
    assert run("cuda") == pytest.approx(cpu, rel=5e-3)
    assert run("cuda", amp=True, amp_kwargs={"dtype": torch.bfloat16}) == pytest.approx(cpu, rel=5e-2)


def test_network_compiles() -> None:
    set_determinism(0)
    network = MultimodalCAMNet(channels=(16,), stride=2).cuda()
    image, present = multimodal_batch()["image"].cuda(), multimodal_batch()["present"].cuda()
    torch.testing.assert_close(torch.compile(network)(image, present), network(image, present), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bundle", ["brats_mri_equivariant_cam", "brats_mri_guided_attention"])
def test_bundle_trains_on_the_gpu(bundle: str, tmp_path: Path) -> None:
    from monai_rrr.data import derive_tags, generate_cohort, load_datalist, write_tags

    generate_cohort(tmp_path / "data", cases=4, seed=1, spacing=5.0, controls=0.25)
    write_tags(tmp_path / "tags.csv", derive_tags(load_datalist(tmp_path / "data", with_labels=True), "brats2018"))
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str(BUNDLES / bundle / "configs/train.yaml"),
    ]
    values = {
        "bundle_root": BUNDLES / bundle,
        "dataset_dir": tmp_path / "data",
        "tags_file": tmp_path / "tags.csv",
        "output_dir": tmp_path / "eval",
        "ckpt_dir": tmp_path / "models",
        "cache_dir": tmp_path / "cache",
        "epochs": 1,
        "spacing": 6.0,
        "roi_size": "[32, 32, 8]",
    }
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads((tmp_path / "eval" / "run.json").read_text())
    assert written["status"] == "completed"
    assert torch.cuda.get_device_name() in json.dumps(written)
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(torch.isfinite(value.float()).all() for value in weights.values())
