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

r"""What does one training step of Energy on the maps of all classes cost, by the way in which the maps are made?

    python benchmarks/peers_cost.py --device cuda --size 128
    python benchmarks/peers_cost.py --size 48

writes ``benchmarks/results/peers_cost.json`` and ``.md``. All variants of a network take their steps (forward,
backward, AdamW) in turn in one process; ratios are medians of the ratios to the plain step of the same round. Memory is
what a step allocates at its peak beyond what lies there before it (GPU), or what autograd keeps for the backward pass
(CPU). The loops over classes are written here, as users of pytorch-grad-cam and captum write them for a loss on maps:
these libraries make maps without a graph, and call the network again for each class.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import monai
import torch
import torch.nn.functional as F
from cohort import hardware
from lrp_cost import held_bytes
from monai.networks.nets import DenseNet121, resnet18
from torch import Tensor, nn

import monai_rrr
from monai_rrr.attribution import CAM, Attributor, GradCAM, record
from monai_rrr.losses import EvidenceLoss
from monai_rrr.objectives import Classification, Objective, RightReasons
from monai_rrr.utils.files import atomic_write

RESULTS = Path(__file__).parent / "results"
PLAIN = "plain step"
CLOSED = "closed-form CAM"


def networks(classes: int) -> dict[str, tuple[nn.Module, str, str]]:
    """Network, the layer that is explained, and the head."""
    resnet = resnet18(n_input_channels=4, num_classes=classes, conv1_t_stride=2, no_max_pool=True)
    densenet = DenseNet121(3, 4, classes)
    return {"ResNet18": (resnet, "layer4", "fc"), "DenseNet121": (densenet, "class_layers.relu", "class_layers.out")}


def variants(network: nn.Module, layer: str, head: str, batch: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Name -> forward pass that ends in the loss."""
    image, label = batch["image"], batch["class_label"]

    def ours(attribute: Attributor) -> Callable[[], Tensor]:
        guide = RightReasons(attribute, "energy", classes="all", whole_image=True)
        objective = Objective({"task": Classification(), "guide": guide})
        return lambda: objective(record(network, image, objective.layers), batch)[0]

    def loop(again: bool) -> Callable[[], Tensor]:
        return lambda: loop_over_classes(network, layer, batch, again)

    return {
        PLAIN: lambda: F.binary_cross_entropy_with_logits(network(image), label),
        CLOSED: ours(CAM(layer, head)),
        "Grad-CAM through autograd": ours(GradCAM(layer)),
        "loop over classes, one forward pass": loop(again=False),
        "loop over classes, a forward pass each": loop(again=True),
    }


def loop_over_classes(network: nn.Module, layer: str, batch: dict[str, Tensor], again: bool) -> Tensor:
    """A hook, and a gradient of the kept features for each class."""
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    energy = EvidenceLoss("energy")
    try:
        logits = network(batch["image"])
        loss = F.binary_cross_entropy_with_logits(logits, batch["class_label"])
        terms = []
        for index in range(logits.shape[1]):
            scores = network(batch["image"]) if again else logits
            features = kept[-1]
            gradient = torch.autograd.grad(scores[:, index].sum(), features, create_graph=True, retain_graph=True)[0]
            weight = gradient.mean((2, 3, 4), keepdim=True)
            heatmap = (weight * features).sum(1, keepdim=True).relu()
            allowed = F.adaptive_max_pool3d(batch["evidence_mask"][:, index : index + 1], heatmap.shape[2:])
            terms.append(energy(heatmap, allowed))
        return loss + torch.stack(terms).mean()
    finally:
        handle.remove()


def measure(device: torch.device, size: int, rounds: int, batch_size: int, classes: int) -> list[dict[str, Any]]:
    """Rows of the table."""
    rows = []
    for name in networks(classes):
        torch.manual_seed(0)
        network, layer, head = networks(classes)[name]
        network = network.to(device).train()
        mask = torch.zeros(batch_size, classes, size, size, size, device=device)
        mask[..., : size // 3, : size // 3, : size // 3] = 1
        batch = {
            "image": torch.randn(batch_size, 4, size, size, size, device=device),
            "class_label": torch.ones(batch_size, classes, device=device),
            "evidence_mask": mask,
        }
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
        made = variants(network, layer, head, batch)
        seconds, memory = _measured(made, network, optimizer, device, rounds)
        for variant, values in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(values, seconds[PLAIN], strict=True))
            rows.append(
                {
                    "network": name,
                    "variant": variant,
                    "time": round(ratio, 3),
                    "memory": round(memory[variant] / memory[PLAIN], 3),
                    "seconds": round(statistics.median(values), 5),
                    "mib": round(memory[variant] / 2**20, 1),
                }
            )
    return rows


def _measured(
    made: dict[str, Callable[[], Tensor]],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    rounds: int,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    seconds: dict[str, list[float]] = {variant: [] for variant in made}
    memory: dict[str, float] = {}
    for number in range(rounds + 2):
        for variant, forward in made.items():
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            elif number == 0:
                memory[variant] = held_bytes(forward, device)[0]
            begin = _clock(device)
            forward().backward()
            optimizer.step()
            end = _clock(device)
            if device.type == "cuda":
                memory[variant] = torch.cuda.max_memory_allocated(device) - before
            if number >= 2:
                seconds[variant].append(end - begin)
    return seconds, memory


def _clock(device: torch.device) -> float:
    """Seconds: of the GPU's wall clock, or of this process's CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def markdown(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Lay the rows out as a table."""
    keys = ("network", "variant", "time", "memory", "seconds")
    lines = [
        "# Cost of Energy on the maps of all classes",
        "",
        "Made by `python benchmarks/peers_cost.py`: " + ", ".join(f"{key} {value}" for key, value in about.items()),
        "",
        "A training step as multiples of the plain step of the same network; seconds are those of a step.",
        "",
        f"| {' | '.join(keys)} |",
        "|---" * len(keys) + "|",
        *("| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=48, help="edge of the volume in voxels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "peers_cost.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    rows = measure(device, arguments.size, arguments.rounds, arguments.batch_size, arguments.classes)
    about = {
        "date": date.today().isoformat(),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "MONAI": monai.__version__,
        "monai_rrr": monai_rrr.__version__,
        "volume": f"{arguments.batch_size} x 4 x {arguments.size}^3",
        "classes": arguments.classes,
        "rounds": arguments.rounds,
    }
    content = {"about": about, "rows": rows}
    atomic_write(arguments.output, (json.dumps(content, indent=1) + "\n").encode())
    text = markdown(rows, about)
    atomic_write(arguments.output.with_suffix(".md"), text.encode())
    print(text)


if __name__ == "__main__":
    main()
