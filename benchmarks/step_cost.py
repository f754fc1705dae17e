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


"""Cost of one training step: the full method against its floor, the naive formulation, and where the time goes.

    python benchmarks/step_cost.py

writes ``benchmarks/results/step_cost.json`` and ``.md``. CPU seconds of one thread, all variants interleaved in one
process; ratios are medians of the ratios within a round. ``--devices cuda`` measures wall seconds on a GPU, warmed up
and between synchronizations; the committed figures of a GPU are in ``step_cost_gpu.json`` and ``.md`` (``--name``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import monai
import torch
import torch.nn.functional as F
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

import monai_rrr
from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.trace import Trace, record
from monai_rrr.engines import PrepareViews, explanation_update
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

RESULTS = Path(__file__).parent / "results"
BAR = 1.15
LAYERS = ("class_maps", "reliability")
CASES: dict[str, dict[str, Any]] = {
    "bundle (train.yaml)": {"channels": (16,), "stride": 2, "batch": 4, "size": (64, 64, 12)},
    "wide (full_resolution.yaml), small slab": {
        "channels": (24, 48, 96),
        "stride": 2,
        "batch": 2,
        "size": (64, 64, 12),
    },
    "bundle at stride 1": {"channels": (16,), "stride": 1, "batch": 2, "size": (64, 64, 12)},
}
LARGE = {"channels": (24, 48, 96), "stride": 2, "batch": 4, "size": (160, 192, 32)}  # for a GPU
NAMES = {
    "floor": "plain classification, the same batch of two views, no warp",
    "floor_warped": "plain classification, two views by warp",
    "full": "full method: classification, ER, CM, KD, nesting",
    "full_at_image_resolution": "full method, maps brought to the resolution of the image before they are compared",
    "naive": "full method, one forward pass per modality and view",
    "passes": "encoder passes of the full method alone: forward, backward, optimizer",
    "bf16": "full method under bf16 autocast, losses in float32",
}


@dataclass(frozen=True)
class UpsampledMap(ClassMap):
    """Class maps at the resolution of the image."""

    def __call__(self, trace: Trace) -> Tensor:
        """Return the maps."""
        maps = super().__call__(trace)
        size = trace.image.shape[2:]
        up = F.interpolate(maps.flatten(1, 2), size=size, mode="trilinear", align_corners=False)
        return up.unflatten(1, maps.shape[1:3])


class OnePassEach(nn.Module):
    """The naive formulation: a network call for every modality of each of the two views."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(MultimodalCAMNet(["one"], **options) for _ in range(4))
        self.class_maps, self.reliability = nn.Identity(), nn.Identity()

    def forward(self, image: Tensor, present: Tensor) -> Tensor:
        """Return logits as :class:`MultimodalCAMNet` does."""
        views, maps, logits = image.chunk(2), [], []
        for view in views:
            traces = [record(net, view[:, m : m + 1], ["class_maps"]) for m, net in enumerate(self.branches)]
            maps.append(torch.cat([trace.features["class_maps"] for trace in traces], 1))
            logits.append(torch.cat([trace.logits for trace in traces], 1))
        self.reliability(torch.full((4, 3), 0.25, device=image.device))
        self.class_maps(torch.cat(maps))
        return torch.cat(logits)


def objective(attribute: ClassMap | None = None) -> Objective:
    attribute = attribute or ClassMap()
    terms = {
        "classification": TagClassification(),
        "within_modal": WithinModalEquivariance(attribute),
        "cross_modal": CrossModalEquivariance(attribute),
        "mutual_learning": MutualLearning(),
        "nesting": Nesting(attribute),
    }
    return Objective(terms, {"cross_modal": 0.5, "mutual_learning": 0.5, "nesting": 0.1})


def twice(batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **_: Any) -> dict[str, Any]:
    """Return the batch of two views without a warp: what the floor trains on."""
    moved = PrepareViews()(batch, device, non_blocking)
    return {k: torch.cat([v, v]) if isinstance(v, Tensor) else v for k, v in moved.items()}


def make_batch(batch: int, size: tuple[int, ...]) -> dict[str, Any]:
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    brain = (axes[0] ** 2 / 0.8 + axes[1] ** 2 < 0.9).expand(batch, 1, *size)
    slices = torch.zeros(batch, 3, size[2])
    slices[::2, :, size[2] // 3 : 2 * size[2] // 3] = 1
    return {
        "image": torch.randn(batch, 4, *size) * brain,
        "brain": brain.clone(),
        "present": torch.ones(batch, 4, dtype=torch.bool),
        "class_label": slices.amax(2),
        "slice_label": slices,
    }


def trainer(
    network: nn.Module, loss: Objective, prepare: Any, device: torch.device, **options: Any
) -> SupervisedTrainer:
    return SupervisedTrainer(
        device=device,
        max_epochs=1,
        train_data_loader=[],
        epoch_length=1,
        network=network.to(device),
        optimizer=torch.optim.AdamW(network.parameters(), 1e-3),
        loss_function=loss,
        prepare_batch=prepare,
        iteration_update=explanation_update,
        decollate=False,
        **options,
    )


def make_steps(case: Mapping[str, Any], device: torch.device) -> dict[str, Callable[[int], object]]:
    options = {"channels": case["channels"], "stride": case["stride"]}
    batch = make_batch(case["batch"], case["size"])
    plain = Objective({"classification": TagClassification()})
    warped = PrepareViews(RandomWarp())

    def step(network: nn.Module, loss: Objective, prepare: Any, **more: Any) -> Callable[[int], object]:
        engine = trainer(network, loss, prepare, device, **more)

        def run(iteration: int) -> object:
            engine.state.iteration = iteration + 1
            return explanation_update(engine, batch)

        return run

    def net() -> MultimodalCAMNet:
        torch.manual_seed(0)
        return MultimodalCAMNet(**options)

    return {
        "floor": step(net(), plain, twice),
        "floor_warped": step(net(), plain, warped),
        "full": step(net(), objective(), warped),
        "full_at_image_resolution": step(net(), objective(UpsampledMap()), warped),
        "naive": step(OnePassEach(options), objective(), warped),
        "passes": passes(net().to(device), warped({**batch, "iteration": 1}, device)),
        "bf16": step(net(), objective(), warped, amp=True, amp_kwargs={"dtype": torch.bfloat16}),
    }


def passes(network: nn.Module, views: Mapping[str, Any]) -> Callable[[int], object]:
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)

    def run(_: int) -> None:
        optimizer.zero_grad()
        trace = record(network, views["image"], LAYERS, present=views["present"])
        maps = trace.features["class_maps"]
        torch.autograd.backward([maps, trace.logits], [torch.ones_like(maps), torch.ones_like(trace.logits)])
        optimizer.step()

    return run


def measure(case: Mapping[str, Any], rounds: int, device: torch.device) -> dict[str, Any]:
    steps = make_steps(case, device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    warm = 1 if device.type == "cpu" else 5
    for iteration in range(rounds + warm):
        names = list(steps) if iteration % 2 else list(reversed(steps))
        for name in names:
            begin = clock()
            steps[name](iteration)
            if iteration >= warm:
                seconds[name].append(clock() - begin)
    return {
        "settings": {key: list(v) if isinstance(v, tuple) else v for key, v in case.items()},
        "milliseconds": {name: round(1000 * statistics.median(values), 2) for name, values in seconds.items()},
        "ratios": {
            "full / floor": ratio(seconds, "full", "floor"),
            "full / floor with warped views": ratio(seconds, "full", "floor_warped"),
            "naive / full": ratio(seconds, "naive", "full"),
            "maps at image resolution / at feature resolution": ratio(seconds, "full_at_image_resolution", "full"),
            "bf16 / float32": ratio(seconds, "bf16", "full"),
            "share of the full step outside encoder passes": [
                round(1 - v, 3) for v in reversed(ratio(seconds, "passes", "full"))
            ],
        },
    }


def ratio(seconds: Mapping[str, list[float]], one: str, two: str) -> list[float]:
    """Lower quartile, median and upper quartile of the ratio within a round."""
    values = [a / b for a, b in zip(seconds[one], seconds[two], strict=True)]
    return [round(v, 3) for v in statistics.quantiles(values, n=4)]


def as_markdown(result: Mapping[str, Any]) -> str:
    lines = [
        "# Cost of one training step",
        "",
        f"{result['rounds']} interleaved rounds, {result['hardware']}, {result['date']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f". Command: `{result['command']}`. CPU: seconds of one thread, GPU: wall seconds; load of the machine "
        f"{result['load']}.",
        "",
        *(f"- `{name}`: {text}" for name, text in NAMES.items()),
        "",
    ]
    for device, cases in result["devices"].items():
        lines += [f"## {device}", ""]
        names = list(cases)
        lines += ["| ms, median | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        lines += [f"| {v} | " + " | ".join(str(c["milliseconds"][v]) for c in cases.values()) + " |" for v in NAMES]
        lines += ["", "| median (quartiles) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for what in next(iter(cases.values()))["ratios"]:
            cells = (c["ratios"][what] for c in cases.values())
            lines.append(f"| {what} | " + " | ".join(f"{m:.3f} ({a:.3f}-{b:.3f})" for a, m, b in cells) + " |")
        lines += [""]
    lines += [
        f"Bar: full / floor at most {BAR}: "
        + ", ".join(f"{k} {'met' if v else 'missed'}" for k, v in result["bar"].items()),
    ]
    return "\n".join(lines) + "\n"


def hardware() -> str:
    model = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model or platform.machine()}, {os.cpu_count()} cores{gpu}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="steps per variant")
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many of the networks, from the first on")
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), default=["cpu"])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--name", default="step_cost", help="of the result files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    monai.utils.set_determinism(0)
    torch.use_deterministic_algorithms(False)
    load = f"{os.getloadavg()[0]:.1f}"
    chosen = dict(list(CASES.items())[: arguments.cases])
    devices = {
        d: {n: measure(c, arguments.rounds, torch.device(d)) for n, c in chosen.items()} for d in arguments.devices
    }
    result = {
        "command": f"python benchmarks/step_cost.py --rounds {arguments.rounds} --cases {len(chosen)} "
        f"--devices {' '.join(arguments.devices)}",
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "load": load,
        "rounds": arguments.rounds,
        "versions": {"monai-rrr": monai_rrr.__version__, "torch": torch.__version__, "monai": monai.__version__},
        "bar": {
            f"{name} ({device})": case["ratios"]["full / floor"][1] <= BAR
            for device, cases in devices.items()
            for name, case in cases.items()
        },
        "devices": devices,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = as_markdown(result)
    (arguments.output / f"{arguments.name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
