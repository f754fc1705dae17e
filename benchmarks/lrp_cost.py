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
process; ratios are medians of the ratios within a round. Memory is what the allocator counts, from the start of the
step: what is held when the forward pass has ended, and the most that is held at once until the backward pass has ended;
parameters and their gradients are there before. With a GPU, ``--device cuda`` measures wall seconds between
synchronizations. zennit is compared with when it is installed (``pip install zennit==0.5.1``; not one of this project's
requirements); otherwise its rows say so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import monai
import torch
from monai.networks.nets import SegResNet, resnet18
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import monai_rrr
from monai_rrr.attribution import Epsilon, Gamma, LRPRules
from monai_rrr.networks import SegmenterClassifier, TiedAutoencoder

try:
    import zennit
    from zennit.composites import EpsilonPlus
except ImportError:
    zennit = None

RESULTS = Path(__file__).parent / "results"
CLASSES = 3
FIGURES = ("forward", "step", "kept", "peak")
PRICES = (
    ("eps, first class", "eps, 1 class", "encoder", 1),
    ("z+, first class", "z+, 1 class", "encoder", 1),
    ("z+, second class", "z+, 2 classes", "z+, 1 class", 1),
    ("z+, third class", "z+, 3 classes", "z+, 2 classes", 1),
    ("z+ with checkpointing, first class", "z+, 1 class, checkpointing", "encoder", 1),
    ("z+ with checkpointing, each further class", "z+, 3 classes, checkpointing", "z+, 1 class, checkpointing", 2),
    ("double backward, first class", "double backward, 1 class", "encoder", 1),
    ("double backward, each further class", "double backward, 3 classes", "double backward, 1 class", 2),
    ("zennit, first class", "zennit, 1 class", "encoder", 1),
    ("zennit, each further class", "zennit, 3 classes", "zennit, 1 class", 2),
    ("U-Net decoder", "U-Net decoder, all classes", "encoder", 1),
)
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


def by_zennit(encoder: nn.Module, image: Tensor, classes: int) -> Tensor:
    """Maps of zennit's ``EpsilonPlus`` (z+, epsilon at the head), ready for a loss; one backward pass per class."""
    image = image.clone().requires_grad_(True)
    with EpsilonPlus().context(encoder) as modified:
        logits = modified(image)
        starts = [logits.detach() * (torch.arange(CLASSES, device=image.device) == c) for c in range(classes)]
        maps = [torch.autograd.grad(logits, image, start, create_graph=True)[0] for start in starts]
    return torch.stack([part.sum(1) for part in maps], 1)


def in_bfloat16(forward: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The same under autocast."""

    def run() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return forward()

    return run


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
    for classes in (1, 3):
        made[f"z+, {classes} class" + "es" * (classes > 1) + ", checkpointing"] = tied(
            RULES["z+"], classes, checkpointing=True
        )
    for name in ("encoder", "z+, 1 class"):
        made[f"{name}, bf16"] = in_bfloat16(made[name], image.device)
    for classes in (1, 3):
        made[f"double backward, {classes} class" + "es" * (classes > 1)] = lambda n=classes: (
            double_backward(encoder, image, n).square().mean()
        )
        if zennit is not None:
            made[f"zennit, {classes} class" + "es" * (classes > 1)] = lambda n=classes: (
                by_zennit(encoder, image, n).square().mean()
            )
    if unet is not None:
        made["U-Net decoder, all classes"] = lambda: unet(image).square().mean()
    return made


def held_bytes(step: Callable[[], Any], device: torch.device) -> tuple[int, int]:
    """Bytes that a step allocates: held at its end, while its result lives, and at most."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        result = step()
        end = torch.cuda.memory_allocated(device) - start
        del result
        return end, torch.cuda.max_memory_allocated(device) - start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = step()
    del result
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    sums = list(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())))
    return sums[-1], max(sums)


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
        memory = {}
        times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in made}
        for number in range(rounds + 1):
            for variant, forward in made.items():
                start = clock(device)
                total = forward()
                middle = clock(device)
                total.backward()
                end = clock(device)
                del total
                if not number:
                    held = held_bytes(forward, device)[0]
                    memory[variant] = held, held_bytes(lambda run=forward: run().backward(), device)[1]
                else:
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
                    "kept": round(memory[variant][0] / memory["encoder"][0], 2),
                    "peak": round(memory[variant][1] / memory["encoder"][1], 2),
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
        "Multiples of the encoder alone: forward pass, step (forward and backward), bytes held when the forward pass",
        "has ended, bytes at most during a step. Every row holds the encoder's own pass.",
        "" if zennit is not None else "\n**zennit was not installed: not compared.**\n",
        "| network | variant | forward | step | kept | peak |",
        "|---|---|---|---|---|---|",
    ]
    keys = ("network", "variant", *FIGURES)
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    lines += ["", "What is decoded alone, without the encoder's pass, in the same units:", ""]
    lines += ["| network | | forward | step | kept | peak |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["network"] for row in rows):
        of = {row["variant"]: row for row in rows if row["network"] == name}
        pairs = [(label, of.get(more), of.get(less), by) for label, more, less, by in PRICES]
        lines += [
            f"| {name} | {label} | " + " | ".join(f"{(more[key] - less[key]) / by:.2f}" for key in FIGURES) + " |"
            for label, more, less, by in pairs
            if more is not None and less is not None
        ]
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
        "zennit": version("zennit") if zennit is not None else "not installed",
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
