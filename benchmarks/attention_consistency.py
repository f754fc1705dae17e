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

r"""Attention consistency (ATCON): does agreement of two explanations help where training cases are few?

    python benchmarks/attention_consistency.py run --data letter.npz --out work --jobs 8
    python benchmarks/attention_consistency.py table --out work --result benchmarks/results/attention_consistency.json

Tumor or not, on the cohort of the decoy bench without any marker (see ``cohort.py``): 8 to 64 of its training cases,
half of them with a tumor, and all of its test cases. For every size and seed one network is trained on the task alone;
all other arms go on from it, for the same number of further epochs, on the same batches and with the same learning
rate:

- ``supervised``: the network itself;
- ``longer``: the task loss alone;
- ``consistency``: with the term (closed-form map against input times gradient);
- ``shuffled``: the same, the image masked by the evidence of another sample;
- ``finetune``: the term without the task loss, as published.

Nothing is selected on the test cases. A finished run (size, seed) is one JSON file and is skipped.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cohort import (
    ATTRIBUTE,
    STATE,
    TRAINING,
    Batches,
    Cases,
    fit,
    hardware,
    make_network,
    predict,
    run_all,
    start,
)
from monai.utils import set_determinism
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn

from monai_rrr.attribution import InputTimesGradient, record, resize_heatmap
from monai_rrr.losses import AttentionConsistencyLoss
from monai_rrr.metrics import LocalizationScores, bootstrap_mean
from monai_rrr.objectives import AttentionConsistency, Classification, Objective
from monai_rrr.utils.files import atomic_write

ARMS = ("supervised", "longer", "consistency", "shuffled", "finetune")
SCORES = ("f1", "auroc", "lift", "entropy", "rho_within", "rho_across")
SETTINGS = ("epochs", "steps", "more_steps", "batch_size", "learning_rate", "more_learning_rate", "alpha", "width")
SECOND = InputTimesGradient(constant="none", per_modality=True)  # batch normalization in evaluation is affine


def objective_of(arm: str, alpha: float, seed: int) -> Objective:
    """What an arm minimizes in the further epochs."""
    if arm == "longer":
        return Objective({"task": Classification()})
    control = "shuffled" if arm == "shuffled" else "none"
    consistency = AttentionConsistency(ATTRIBUTE, SECOND, blur=3.0, control=control, seed=seed)
    task = {} if arm == "finetune" else {"task": Classification()}
    return Objective({**task, "consistency": consistency}, {"consistency": alpha})


def freeze_normalization(network: nn.Module) -> None:
    """Keep the statistics of batch normalization as they are, whatever ``train()`` says."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]


def evaluate(network: nn.Module, cases: Cases) -> dict[str, Any]:
    """Task scores, where the maps look, how sharp they are, and how alike within and across samples."""
    logits, heatmaps = predict(network, cases)
    label, score = cases.label[:, 0].cpu().numpy(), logits.cpu().numpy()
    rows = (cases.label[:, 0] > 0).nonzero()[:, 0].tolist()
    chosen = cases.take(rows)
    metric = LocalizationScores(cases.spacing, scores=("lift",))
    metric(resize_heatmap(heatmaps[rows], cases.image.shape[2:]), chosen.lesion, brain=chosen.brain)
    brain = torch.nn.functional.adaptive_avg_pool3d(cases.brain.float(), heatmaps.shape[2:]) > 0.5
    inside = brain & brain.roll(1, 0)
    alike = AttentionConsistencyLoss(reduction="none")
    masked = _masked_heatmaps(network, cases)
    return {
        "f1": float(f1_score(label, score > 0, zero_division=0.0)),
        "auroc": float(roc_auc_score(label, score)),
        "lift": float(metric.aggregate("lift")),
        "entropy": float(_entropy(heatmaps, brain)),
        "rho_within": float(1 - alike(heatmaps, masked, brain).mean()),
        "rho_across": float(1 - alike(heatmaps, heatmaps.roll(1, 0), inside).mean()),
        "logit": [round(value, 3) for value in score.tolist()],
    }


def _masked_heatmaps(network: nn.Module, cases: Cases, batch_size: int = 32) -> Tensor:
    """Heatmaps of the images that the second explanation masked."""
    term = AttentionConsistency(ATTRIBUTE, SECOND, blur=3.0, detach_second=True)
    network.eval()
    found = []
    for image, brain in zip(cases.image.split(batch_size), cases.brain.split(batch_size), strict=True):
        index = torch.zeros(len(image), 1, dtype=torch.long, device=image.device)
        batch = {"brain": brain}
        trace = record(network, image, term.layers)
        again = record(network, term.masked(trace, batch, index).detach(), ATTRIBUTE.layers)
        found.append(ATTRIBUTE(again, index).detach())
    return torch.cat(found)


def _entropy(heatmaps: Tensor, brain: Tensor) -> Tensor:
    """Mean entropy of the positive evidence over the brain: 1 for a uniform map, 0 for a single voxel."""
    positive = (heatmaps.clamp(min=0) * brain).flatten(1).double()
    total = positive.sum(1)
    share = positive / total.clamp(min=1e-12)[:, None]
    entropy = torch.special.entr(share).sum(1) / brain.flatten(1).sum(1).clamp(min=2).double().log()
    return entropy[total > 1e-7].mean()


def work(task: tuple[int, int]) -> str:
    """Train all arms of one size and seed."""
    size, seed = task
    options, begin = STATE["options"], time.perf_counter()
    training, test = STATE["sets"][TRAINING].without_marker(), STATE["sets"]["removed"]
    label = training.label[:, 0].cpu().numpy() > 0
    rng = np.random.RandomState(seed)
    half = [rng.permutation(np.flatnonzero(group))[: size // 2].tolist() for group in (label, ~label)]
    few = training.take(half[0] + half[1])
    set_determinism(seed)
    network = make_network(few.image.shape[1], options.width).to(few.image.device)
    batches = Batches(few, {}, options.batch_size, seed)
    epochs, more = (max(1, round(steps / len(batches))) for steps in (options.steps, options.more_steps))
    fit(network, batches, Objective({"task": Classification()}), epochs, options.learning_rate)
    arms = {"supervised": evaluate(network, test)}
    for arm in options.arms:
        if arm == "supervised":
            continue
        tuned = copy.deepcopy(network)
        freeze_normalization(tuned)
        again = Batches(few, {}, options.batch_size, seed)
        again.epoch = epochs
        fit(tuned, again, objective_of(arm, options.alpha, seed), more, options.more_learning_rate)
        arms[arm] = evaluate(tuned, test)
    result = {
        "size": size,
        "seed": seed,
        "settings": {key: getattr(options, key) for key in SETTINGS if hasattr(options, key)},
        "device": hardware(few.image.device),
        "torch": torch.__version__,
        "label": test.label[:, 0].int().tolist(),
        "arms": arms,
    }
    atomic_write(options.out / f"size{size}_seed{seed}.json", json.dumps(result).encode())
    line = ", ".join(f"{arm} F1 {found['f1']:.3f} lift {found['lift']:.2f}" for arm, found in arms.items())
    return f"{size} cases, seed {seed}: {line} ({time.perf_counter() - begin:.0f} s)"


def run(options: Any) -> None:
    """All sizes and seeds, unless their result is there."""
    options.out.mkdir(parents=True, exist_ok=True)
    tasks = [(size, seed) for seed in range(options.seeds) for size in options.sizes]
    tasks = [(size, seed) for size, seed in tasks if not (options.out / f"size{size}_seed{seed}.json").exists()]
    run_all(tasks, work, start, options)


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per size and arm: means over seeds, and the paired difference to ``longer``; the unit is the seed."""
    rows = []
    for size in sorted({result["size"] for result in results}):
        own = [result for result in results if result["size"] == size]
        for arm in ARMS:
            if any(arm not in result["arms"] for result in own):
                continue
            row: dict[str, Any] = {"size": size, "arm": arm, "seeds": len(own)}
            for score in SCORES:
                values = np.array([result["arms"][arm][score] for result in own])
                base = np.array([result["arms"]["longer"][score] for result in own])
                row[score] = _interval(values[np.isfinite(values)])
                both = np.isfinite(values) & np.isfinite(base)
                row[f"{score}_minus_longer"] = _interval((values - base)[both])
            rows.append(row)
    return rows


def _interval(values: Any) -> list[float] | None:
    if not len(values):
        return None
    found = bootstrap_mean(values)
    return [round(value, 4) for value in (found.mean, found.low, found.high)]


def table(options: Any) -> None:
    """Write all results as JSON and as a table in Markdown."""
    results = [json.loads(path.read_text()) for path in sorted(options.out.glob("size*_seed*.json"))]
    content = {
        "command": options.command_line,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": results[0]["device"],
        "versions": {name: version(name) for name in ("monai", "numpy")} | {"torch": results[0]["torch"]},
        "test_cases": len(results[0]["label"]),
        "settings": results[0]["settings"],
        "rows": summarize(results),
    }
    atomic_write(options.result, (json.dumps(content, indent=1) + "\n").encode())
    atomic_write(options.result.with_suffix(".md"), markdown(content).encode())
    print(markdown(content))


def markdown(content: Mapping[str, Any]) -> str:
    """Lay the rows out as a table."""
    columns = [*SCORES, "f1_minus_longer", "auroc_minus_longer"]
    lines = [["cases", "arm", "seeds", *(name.replace("_", " ") for name in columns)]]
    lines.append(["---"] * len(lines[0]))
    for row in content["rows"]:
        cells = ["n/a" if row[name] is None else "{:.3f} [{:.3f}, {:.3f}]".format(*row[name]) for name in columns]
        lines.append([str(row["size"]), row["arm"], str(row["seeds"]), *cells])
    text = (
        f"# Attention consistency\n\nMade by `{content['command']}`. {content['test_cases']} test cases, "
        f"{content['hardware']}, {content['date']}. Means over seeds (training cases and initial weights differ) with "
        "95 % bootstrap interval over seeds; entropy of the maps over the brain: 1 is uniform; rho: correlation of the "
        "map with that of the masked image (within) and of the next case (across).\n\n"
    )
    return text + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("--data", type=Path, required=True, help="file of benchmarks/cohort.py")
    command.add_argument("--out", type=Path, required=True, help="folder of the results, one file per run")
    command.add_argument("--sizes", nargs="+", type=int, default=[8, 16, 32, 64], help="numbers of training cases")
    command.add_argument("--seeds", type=int, default=5, help="how many")
    command.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    command.add_argument("--device", help="default: cuda if there is one")
    command.add_argument("--jobs", type=int, default=1, help="processes")
    command.add_argument("--width", type=int, default=8)
    command.add_argument("--steps", type=int, default=200, help="of the supervised training")
    command.add_argument("--more-steps", type=int, default=100, help="of all other arms")
    command.add_argument("--batch-size", type=int, default=8)
    command.add_argument("--learning-rate", type=float, default=1e-2)
    command.add_argument("--more-learning-rate", type=float, default=1e-3)
    command.add_argument("--alpha", type=float, default=0.2, help="weight of the term, published: 0.2")
    command = commands.add_parser("table")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--result", type=Path, required=True)
    command.add_argument("--command-line", default="python benchmarks/attention_consistency.py run ...")
    options = parser.parse_args()
    (run if options.command == "run" else table)(options)


if __name__ == "__main__":
    main()
