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

"""CPU seconds that verifying costs: per full-size case beyond decompression, and for a data set known to be intact.

    python benchmarks/verify_cost.py --data /path/to/BraTS

writes ``benchmarks/results/verify_cost.json`` and ``.md``. One thread; medians count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import monai_rrr
from monai_rrr.data import derive_tags, load_datalist, verify_cases

RESULTS = Path(__file__).parent / "results"
BAR = 0.3


def cpu(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def decompress(case: dict[str, Any]) -> None:
    """Do what every reader has to do: read and decompress all files of a case, with the checksum of gzip."""
    for path in (*case["modalities"].values(), case["label"]):
        raw = Path(path).read_bytes()
        zlib.decompressobj(31).decompress(raw) if path.endswith(".gz") else None


def measure(data: str, convention: str, repeats: int) -> dict[str, Any]:
    cases = load_datalist(data, with_labels=True)
    tags = derive_tags(cases, convention)

    def verify(some: list[dict[str, Any]], **options: Any) -> Any:
        report = verify_cases(some, convention, tags, workers=1, allow_absent=("WT", "TC", "ET"), **options)
        report.raise_if_faulty()
        return report

    decompressing, verifying = [], []
    for _ in range(repeats):
        for case in cases:
            decompressing.append(cpu(lambda case=case: decompress(case)))
            verifying.append(cpu(lambda case=case: verify([case])))
    beyond = [whole - floor for whole, floor in zip(verifying, decompressing, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "verified.json")
        runs = {name: verify(cases, cache=cache, rehash=name == "rehash") for name in ("first", "again", "rehash")}
        size = cache.stat().st_size
    return {
        "what": "CPU seconds (time.process_time), one thread; full-size cases of four modalities and a label",
        "command": "python benchmarks/verify_cost.py --data /path/to/BraTS2021",
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} shared {platform.machine().replace('_', '-')} cores",
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: str(m.__version__) for m in (monai_rrr, np, nib)},
        },
        "cases": len(cases),
        "repeats": repeats,
        "per_case": {
            name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
            for name, values in (("decompress", decompressing), ("verify", verifying), ("beyond", beyond))
        },
        "bar": BAR,
        "bar_met": statistics.median(beyond) <= BAR,
        "dataset_wall_seconds": {name: report.seconds for name, report in runs.items()},
        "unchanged": {name: report.unchanged for name, report in runs.items()},
        "cache_bytes_per_case": size / len(cases),
    }


def as_markdown(result: dict[str, Any]) -> str:
    names = {
        "decompress": "read and decompress all files of a case (the floor of every reader)",
        "verify": "verify the case",
        "beyond": "verify, beyond decompression",
    }
    wall, unchanged = result["dataset_wall_seconds"], result["unchanged"]
    lines = [
        "# Cost of verifying",
        "",
        f"{result['what']}. {result['cases']} BraTS 2021 cases, {result['repeats']} runs each, {result['hardware']}, "
        f"{result['date']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f". Command: `{result['command']}`.",
        "",
        "| CPU seconds per case | median | least | most |",
        "|---|---|---|---|",
        *(
            f"| {names[name]} | {s['median']:.3f} | {s['least']:.3f} | {s['most']:.3f} |"
            for name, s in result["per_case"].items()
        ),
        "",
        f"Bar: at most {result['bar']} s per case beyond decompression: "
        + ("**met**." if result["bar_met"] else "**missed**."),
        "",
        "| the whole data set, one thread | wall seconds | files not decoded |",
        "|---|---|---|",
        f"| first time | {wall['first']:.2f} | {unchanged['first']} |",
        f"| again, files trusted by size, times and inode | {wall['again']:.2f} | {unchanged['again']} |",
        f"| again, every byte hashed (`--rehash`) | {wall['rehash']:.2f} | {unchanged['rehash']} |",
        "",
        f"The memory of verified files takes {result['cache_bytes_per_case'] / 1000:.1f} kB per case.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of full-size cases with labels")
    parser.add_argument("--convention", default="brats2018", help="label convention")
    parser.add_argument("--repeats", type=int, default=3, help="runs per case")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    result = measure(arguments.data, arguments.convention, arguments.repeats)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "verify_cost.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = as_markdown(result)
    (arguments.output / "verify_cost.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
