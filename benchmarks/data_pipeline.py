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

"""CPU seconds per training sample from full-size cases: MONAI's own recipe against brain boxes and one composed affine.

    python benchmarks/data_pipeline.py --data /path/to/BraTS

writes ``benchmarks/results/data_pipeline.json`` and ``.md``. One thread; all pipelines are interleaved, medians count.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import torch
from monai.transforms import (
    Affine,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensity,
    NormalizeIntensityd,
    Orientationd,
    RandAffined,
)

import monai_rrr
from monai_rrr.data import BrainBoxCache, LoadBrainBoxd, load_datalist
from monai_rrr.transforms import RandSlabd, resample_box
from monai_rrr.utils.enums import MODALITIES

RESULTS = Path(__file__).parent / "results"
BAR = 0.25
AUGMENT = {"rotate": 15.0, "scale": (0.9, 1.1), "translate": 10.0}
PATCH, SLAB, COARSE = (96, 96, 96), (192, 160, 32), (64, 64, 16)
COLD = {"ours, cold: verify, crop and store one case": None, "ours, cold, averaged to 3 mm": 3.0}


def monai_load() -> list[Any]:
    return [
        LoadImaged("image"),
        EnsureChannelFirstd("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        NormalizeIntensityd("image", nonzero=True, channel_wise=True),
    ]


def monai_affine(size: tuple[int, int, int]) -> RandAffined:
    scale, shift = AUGMENT["scale"][1] - 1, AUGMENT["translate"]
    return RandAffined(
        "image",
        prob=1.0,
        spatial_size=size,
        rotate_range=(0, 0, math.radians(AUGMENT["rotate"])),
        scale_range=(scale, scale, 0),
        translate_range=(shift, shift, 24),
        padding_mode="zeros",
    )


def cpu_seconds(function: Callable[[dict[str, Any]], object], case: dict[str, Any]) -> float:
    start = time.process_time()
    function(case)
    return time.process_time() - start


def pipelines(cases: list[dict[str, Any]], folder: Path) -> dict[str, Callable[[dict[str, Any]], object]]:
    """Case -> sample, by name. Caches are warm."""
    fine, coarse = BrainBoxCache(folder / "fine"), BrainBoxCache(folder / "coarse", spacing=3.0)
    fine.build(cases)
    coarse.build(cases)
    load, load_coarse = LoadBrainBoxd(fine), LoadBrainBoxd(coarse)

    def recipe(size: tuple[int, int, int]) -> Callable[[dict[str, Any]], object]:
        transform = Compose([*monai_load(), monai_affine(size)])
        return lambda case: transform({"image": [case["modalities"][m] for m in MODALITIES]})

    def ours(first: LoadBrainBoxd, size: tuple[int, int, int], spacing: float = 1.0, **options: float) -> Compose:
        return Compose([first, RandSlabd(size, spacing, flip_prob=0.5, **AUGMENT, **options)])

    in_memory = Compose(monai_load())({"image": [cases[0]["modalities"][m] for m in MODALITIES]})
    patch_affine, slab_affine = monai_affine(PATCH), monai_affine(SLAB)
    return {
        "monai patch 96x96x96": recipe(PATCH),
        "monai slab 192x160x32": recipe(SLAB),
        "monai patch 96x96x96, affine alone, rest in memory": lambda _: patch_affine(in_memory),
        "monai slab 192x160x32, affine alone, rest in memory": lambda _: slab_affine(in_memory),
        "ours patch 96x96x96": ours(load, PATCH),
        "ours slab 192x160x32": ours(load, SLAB),
        "ours patch 96x96x96 with tilt": ours(load, PATCH, tilt=10.0),
        "ours slab 192x160x32 with tilt": ours(load, SLAB, tilt=10.0),
        "ours slab 64x64x16 at 3 mm": ours(load_coarse, COARSE, spacing=3.0),
    }


def difference(case: dict[str, Any], cache: BrainBoxCache) -> dict[str, float]:
    """Compare one patch of ours with MONAI's Affine on the whole image, both with the same affine and statistics."""
    box = cache.get(case)
    angle, size = math.radians(12), np.array(PATCH)
    linear = np.diag([1 / 1.1, 1 / 1.1, 1.0])
    linear[:2, :2] = linear[:2, :2] @ [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = (np.array(box.brain.shape) - 1) / 2 - linear @ ((size - 1) / 2) + [3.3, -2.1, 0.4]
    image, brain = resample_box(box.as_dict(), matrix, PATCH, clip=1e6)

    source = Compose(monai_load()[:-1])({"image": [case["modalities"][m] for m in MODALITIES]})["image"]
    standardize = NormalizeIntensity(subtrahend=box.mean, divisor=box.std, nonzero=True, channel_wise=True)
    to_source = np.linalg.inv(np.asarray(source.affine)) @ box.affine @ matrix
    middle, center = (size - 1) / 2, (np.array(source.shape[1:]) - 1) / 2
    to_source[:3, 3] += to_source[:3, :3] @ middle - center
    resample = Affine(affine=to_source, padding_mode="zeros", align_corners=False, image_only=True)
    expected = resample(standardize(source), spatial_size=PATCH).numpy()
    apart = np.abs(image.numpy() - expected)[brain.expand(4, *PATCH).numpy()]
    return {"max": float(apart.max()), "mean": float(apart.mean()), "voxels": int(apart.size)}


def measure(data: str, repeats: int) -> dict[str, Any]:
    cases = [c for c in load_datalist(data, with_labels=False) if len(c["modalities"]) == len(MODALITIES)]
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        samples = pipelines(cases, Path(folder))
        for sample in samples.values():
            sample(cases[0])
        for i in range(repeats):
            case = cases[i % len(cases)]
            for name, sample in samples.items():
                seconds[name].append(cpu_seconds(sample, case))
            for name, spacing in COLD.items():
                cold = BrainBoxCache(Path(folder, f"cold_{spacing}_{i}"), spacing)
                seconds[name].append(cpu_seconds(cold.get, case))
            print(f"{i + 1}/{repeats}", file=sys.stderr)
        fine = BrainBoxCache(Path(folder, "fine"))
        equality = [difference(case, fine) for case in cases]
        sizes = [sum(f.stat().st_size for f in Path(folder, n).iterdir()) / len(cases) for n in ("fine", "coarse")]
    return summary(seconds, equality, sizes, len(cases))


def summary(
    seconds: Mapping[str, list[float]], equality: list[dict[str, float]], sizes: list[float], cases: int
) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        kind: medians[f"ours {kind}"] / medians[f"monai {kind}"] for kind in ("patch 96x96x96", "slab 192x160x32")
    }
    return {
        "what": "CPU seconds (time.process_time) per training sample, one thread, medians of interleaved runs",
        "command": "python benchmarks/data_pipeline.py --data /path/to/BraTS2021",
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} shared {platform.machine().replace('_', '-')} cores",
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: str(m.__version__) for m in (monai_rrr, torch, monai, np, nib)},
        },
        "cases": cases,
        "repeats": len(next(iter(seconds.values()))),
        "augmentation": {**AUGMENT, "unit": "degrees, factor, mm"},
        "seconds": {
            name: {"median": medians[name], "least": min(values), "most": max(values)}
            for name, values in seconds.items()
        },
        "ratio": ratios,
        "bar": BAR,
        "bar_met": all(ratio <= BAR for ratio in ratios.values()),
        "difference_from_monai": {
            "what": "standardized units, brain voxels, same affine (12 degrees, 1.1, shifted by parts of a voxel)",
            "max": max(e["max"] for e in equality),
            "mean": statistics.mean(e["mean"] for e in equality),
            "voxels": sum(e["voxels"] for e in equality),
        },
        "cache_megabytes_per_case": {"1 mm": sizes[0] / 1e6, "3 mm": sizes[1] / 1e6},
    }


def as_markdown(result: Mapping[str, Any]) -> str:
    lines = [
        "# Data: CPU seconds per training sample",
        "",
        f"{result['what'][0].upper()}{result['what'][1:]}. {result['cases']} full-size BraTS 2021 cases, "
        f"{result['repeats']} runs, {result['hardware']}, {result['date']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f". Command: `{result['command']}`.",
        "",
        "| pipeline | median s | least | most |",
        "|---|---|---|---|",
        *(f"| {n} | {s['median']:.4f} | {s['least']:.4f} | {s['most']:.4f} |" for n, s in result["seconds"].items()),
        "",
        "`monai`: LoadImaged of four modalities, EnsureChannelFirstd, Orientationd, NormalizeIntensityd, RandAffined. "
        "`ours`: LoadBrainBoxd from a warm cache and RandSlabd with the same kind of affine.",
        "",
        *(f"- {kind}: ours / MONAI = {ratio:.3f} (bar: at most {BAR})" for kind, ratio in result["ratio"].items()),
        "- same affine and statistics, brain voxels, standardized units: ours and MONAI differ by at most "
        f"{result['difference_from_monai']['max']:.1e}, by {result['difference_from_monai']['mean']:.1e} on average",
        *(f"- cache at {name}: {size:.1f} MB per case" for name, size in result["cache_megabytes_per_case"].items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of full-size cases")
    parser.add_argument("--repeats", type=int, default=8, help="samples per pipeline")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    monai.utils.set_determinism(0)
    result = measure(arguments.data, arguments.repeats)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "data_pipeline.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = as_markdown(result)
    (arguments.output / "data_pipeline.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
