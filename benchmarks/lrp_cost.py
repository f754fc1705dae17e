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

"""Cost of decoding classes by relevance: time and memory against the encoder, double backward and a U-Net decoder.

    python benchmarks/lrp_cost.py

writes ``benchmarks/results/lrp_cost.json`` and ``.md``. CPU seconds of one thread, all variants interleaved in one
process; ratios are medians of the ratios within a round. Memory is what autograd keeps for the backward pass, each
storage once, parameters left out. With a GPU, ``--device cuda`` measures wall seconds between synchronizations.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import monai
import torch
from monai.networks.nets import SegResNet, resnet18
from torch import Tensor, nn

import monai_rrr
from monai_rrr.attribution import Epsilon, Gamma, LRPRules
from monai_rrr.networks import SegmenterClassifier, TiedAutoencoder

RESULTS = Path(__file__).parent / "results"
CLASSES = 3
RULES = {
    "eps": LRPRules(Epsilon(), None, None),
    "z+": LRPRules(),
    "gamma": LRPRules(Gamma(), Epsilon()),
}


def segresnet() -> SegResNet:
    """The network of performance comparisons: 4 modalities, 3 classes."""
    return SegResNet(3, 8, 4, CLASSES, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))


def networks() -> dict[str, tuple[nn.Module, nn.Module | None]]:
    """Encoder, and the segmentation network whose decoder is the alternative."""
    unet = segresnet()
    resnet = resnet18(n_input_channels=4, num_classes=CLASSES, conv1_t_stride=1, no_max_pool=True, widen_factor=0.25)
    return {"SegResNet": (SegmenterClassifier(unet, CLASSES), unet), "ResNet18": (resnet, None)}


def double_backward(encoder: nn.Module, image: Tensor, classes: int) -> Tensor:
    """Input times gradient of each class, ready for a loss."""
    image = image.clone().requires_grad_(True)
    logits = encoder(image)
    columns = [torch.autograd.grad(logits[:, c].sum(), image, create_graph=True)[0] for c in range(classes)]
    return torch.stack([(image * column).sum(1) for column in columns], 1)


def variants(encoder: nn.Module, unet: nn.Module | None, image: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Name -> forward pass that ends in a scalar."""

    def tied(rules: LRPRules, classes: int, **options: Any) -> Callable[[], Tensor]:
        network = TiedAutoencoder(encoder, CLASSES, rules=rules, output="segmentation", **options).to(image.device)
        columns = torch.arange(classes, device=image.device).expand(len(image), -1)
        return lambda: network(image, class_idx=columns).square().mean()

    made: dict[str, Callable[[], Tensor]] = {"encoder": lambda: encoder(image).square().mean()}
    for name, rules in RULES.items():
        for classes in (1, 2, 3) if name == "z+" else (1,):
            made[f"{name}, {classes} class" + "es" * (classes > 1)] = tied(rules, classes)
    made["z+, 3 classes, checkpointing"] = tied(RULES["z+"], 3, checkpointing=True)
    for classes in (1, 3):
        made[f"double backward, {classes} class" + "es" * (classes > 1)] = lambda n=classes: (
            double_backward(encoder, image, n).square().mean()
        )
    if unet is not None:
        made["U-Net decoder, all classes"] = lambda: unet(image).square().mean()
    return made


def saved_bytes(forward: Callable[[], Tensor], parameters: set[int]) -> int:
    """Bytes that autograd keeps for the backward pass."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = forward()
    del total
    return sum(seen.values())


def clock(device: torch.device) -> float:
    """Seconds: of the GPU's wall clock, or of this process's CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def measure(device: torch.device, size: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of the table."""
    rows = []
    for name, (encoder, unet) in networks().items():
        torch.manual_seed(0)
        encoder, unet = encoder.to(device), None if unet is None else unet.to(device)
        image = torch.rand(2, 4, *(size,) * 3, device=device)
        made = variants(encoder, unet, image)
        holders = [encoder] if unet is None else [encoder, unet]
        parameters = {p.untyped_storage().data_ptr() for holder in holders for p in holder.parameters()}
        memory = {variant: saved_bytes(forward, parameters) for variant, forward in made.items()}
        times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in made}
        for number in range(rounds + 1):
            for variant, forward in made.items():
                start = clock(device)
                total = forward()
                middle = clock(device)
                total.backward()
                end = clock(device)
                if number:
                    times[variant].append((middle - start, end - start))
        base = times["encoder"]
        for variant, pairs in times.items():
            ratio = [
                statistics.median(pair[i] / other[i] for pair, other in zip(pairs, base, strict=True)) for i in (0, 1)
            ]
            rows.append(
                {
                    "network": name,
                    "variant": variant,
                    "forward": round(ratio[0], 2),
                    "step": round(ratio[1], 2),
                    "memory": round(memory[variant] / memory["encoder"], 2),
                    "seconds": round(statistics.median(pair[1] for pair in pairs), 4),
                }
            )
    return rows


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# Cost of decoding by relevance",
        "",
        "Made by `python benchmarks/lrp_cost.py`: " + ", ".join(f"{key} {value}" for key, value in about.items()) + ".",
        "",
        "Multiples of the encoder alone: forward pass, step (forward and backward), bytes kept for the backward pass.",
        "Every row holds the encoder's own pass, so the price of what is decoded is the figure less 1.",
        "",
        "| network | variant | forward | step | memory |",
        "|---|---|---|---|---|",
    ]
    keys = ("network", "variant", "forward", "step", "memory")
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=48, help="edge of the volume in voxels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "lrp_cost.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    about = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "MONAI": monai.__version__,
        "monai_rrr": monai_rrr.__version__,
        "volume": f"2 x 4 x {arguments.size}^3",
        "rounds": arguments.rounds,
    }
    rows = measure(device, arguments.size, arguments.rounds)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    text = table(rows, about)
    arguments.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
