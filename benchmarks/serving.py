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

r"""What the labeling server needs for one case of 240 x 240 x 155 voxels and four modalities: seconds and memory.

    .venv-label/bin/python benchmarks/serving.py --result benchmarks/results/serving.json

starts a real server (``monai-rrr label``) on this machine with one synthetic case of 1 mm and a bundle with random
weights, at the working resolution of the bundle, and asks it over HTTP, one request at a time:

- ``mask``: the label map, as a file;
- ``heatmap``: the heatmap of the whole tumor as a float volume, as a file;
- ``who and why``: the answer in JSON, with regions of disagreement.

``cold``: the first request after the start, when neither the network nor the case was read. ``warm``: the median of
the following ones. Memory is that of the server process (``VmHWM``, its peak, and ``VmRSS`` after each of ``--rounds``
requests in a row for the heatmap volume). CPU seconds are those of all threads of the server: on a machine that has
other work to do they say more than those of the clock. Departures of annotators in random weights are made strong, so
that there are regions to explain.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests
import torch
from monai.bundle import ConfigParser
from summary_file import write_summary

from monai_rrr.data import generate_cohort
from monai_rrr.utils.tensor_file import write_tensors

BUNDLES = Path(__file__).parents[1] / "bundles"
NAMES = ("brats_mri_right_reasons", "brats_mri_guided_attention", "brats_mri_annotator_tendency")
SECONDS = 900
ASKED = {
    "mask": ("", "image", {}),
    "heatmap": ("_heatmap", "image", {"levels": 0}),
    "who and why": ("", "json", {}),
}


def with_random_weights(name: str, folder: Path, large: bool) -> Path:
    """Copy a bundle and give it random weights, with their manifest."""
    bundle = folder / name
    shutil.copytree(BUNDLES / name, bundle, ignore=shutil.ignore_patterns("eval", "*.pt*", "*.ts", "*.onnx"))
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "inference.yaml"))
    torch.manual_seed(0)
    state = parser.get_parsed_content("network_def").state_dict()
    for index, key in enumerate(key for key in state if key.endswith("gamma") and large):
        state[key] = torch.full_like(state[key], 1.0 if index % 2 else -1.0)
    write_tensors(bundle / "models" / "model.pt", state)
    return bundle


@contextmanager
def served(studies: Path, bundles: Sequence[Path], folder: Path) -> Iterator[tuple[str, int, float]]:
    """Start a server; yield its address, its process and the seconds until it answered."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = ["label", "--studies", studies, "--work", folder / "work", "--port", port]
    words += [word for bundle in bundles for word in ("--bundle", bundle)]
    begin = time.perf_counter()
    with (folder / "server.log").open("wb") as log:
        command = [sys.executable, "-m", "monai_rrr", *map(str, words)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                if requests.get(f"{url}/info/", timeout=SECONDS).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.2)
            if process.poll() is not None or time.perf_counter() - begin > SECONDS:
                raise RuntimeError((folder / "server.log").read_text("utf-8", errors="replace")[-3000:])
        yield url, process.pid, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait(60)


def memory(pid: int, field: str) -> float:
    """MiB of a process, by a field of its status in Linux."""
    text = Path(f"/proc/{pid}/status").read_text("utf-8")
    return round(next(int(row.split()[1]) for row in text.splitlines() if row.startswith(field)) / 1024, 1)


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def ask(url: str, pid: int, model: str, case: str, what: str) -> tuple[float, float, int]:
    """Seconds until the whole answer was there, CPU seconds of the server, and bytes."""
    suffix, output, params = ASKED[what]
    begin, used = time.perf_counter(), cpu_seconds(pid)
    answer = requests.post(
        f"{url}/infer/{model}{suffix}?image={case}&output={output}",
        data={"params": json.dumps(params)},
        timeout=SECONDS,
    )
    seconds = time.perf_counter() - begin
    if not answer.ok:
        raise RuntimeError(answer.text)
    return seconds, cpu_seconds(pid) - used, len(answer.content)


def measure(name: str, studies: Path, case: str, folder: Path, options: Any) -> dict[str, Any]:
    """Ask a fresh server about one bundle."""
    bundle = with_random_weights(name, folder, True)
    with served(studies, [bundle], folder) as (url, pid, start):
        row: dict[str, Any] = {"bundle": name, "start_seconds": round(start, 1), "idle_mib": memory(pid, "VmRSS")}
        first, used, _ = ask(url, pid, name, case, "mask")
        row |= {"cold_seconds": round(first, 2), "cold_cpu_seconds": round(used, 2)}
        row["warm"] = {}
        for what in ASKED:
            times = [ask(url, pid, name, case, what) for _ in range(options.repeats)]
            row["warm"][what] = {
                "median": round(statistics.median(one[0] for one in times), 2),
                "cpu": round(statistics.median(one[1] for one in times), 2),
                "seconds": [round(one[0], 2) for one in times],
                "bytes": times[-1][2],
            }
        row["rss_mib"] = []
        for _ in range(options.rounds):
            ask(url, pid, name, case, "heatmap")
            row["rss_mib"].append(memory(pid, "VmRSS"))
        row["peak_mib"] = memory(pid, "VmHWM")
        answer = requests.post(f"{url}/infer/{name}?image={case}&output=json", timeout=SECONDS).json()
        row["regions_explained"] = len(answer.get("regions", ()))
    return row


def markdown(content: dict[str, Any]) -> str:
    """Return the table."""
    lines = [
        "# Serving: one case of 240 x 240 x 155 voxels, four modalities",
        "",
        f"`{content['command']}`, {content['hardware']}, {content['date']}; {content['load']}.",
        "",
        "| bundle | start (s) | cold (s) | mask (s) | heatmap (s) | who and why (s) | idle (MiB) | peak (MiB) | "
        "RSS over the last half of the requests in a row (MiB) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in content["rows"]:
        late = row["rss_mib"][len(row["rss_mib"]) // 2 :]
        warm = " | ".join(f"{row['warm'][what]['median']:.2f} ({row['warm'][what]['cpu']:.2f})" for what in ASKED)
        lines.append(
            f"| `{row['bundle']}` | {row['start_seconds']:.1f} | {row['cold_seconds']:.2f} "
            f"({row['cold_cpu_seconds']:.2f}) | {warm} | {row['idle_mib']:.0f} | {row['peak_mib']:.0f} | "
            f"{min(late):.0f} to {max(late):.0f} |"
        )
    lines += [
        "",
        "Seconds by the clock, and in brackets CPU seconds of the server. cold: the first request (mask) after the "
        "start. Others: medians of warm requests, whole answers over HTTP on this machine. The JSON of a bundle "
        "without annotators says neither who nor why. Regions explained: "
        + ", ".join(f"`{row['bundle']}` {row['regions_explained']}" for row in content["rows"])
        + ".",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure all bundles and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "serving.json")
    parser.add_argument("--bundles", nargs="+", default=list(NAMES))
    parser.add_argument("--repeats", type=int, default=3, help="warm requests of each kind")
    parser.add_argument("--rounds", type=int, default=10, help="requests in a row")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        generate_cohort(folder / "studies", 1, 0, spacing=1.0)
        case = next(path.name for path in (folder / "studies").iterdir() if path.is_dir())
        for name in options.bundles:
            place = folder / f"of_{name}"
            place.mkdir()
            rows.append(measure(name, folder / "studies", case, place, options))
            print(json.dumps(rows[-1]), flush=True)
    content = {
        "command": "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": str(date.today()),
        "hardware": f"{os.cpu_count()} {platform.machine()} cores, {torch.get_num_threads()} of them used",
        "load": f"load average {os.getloadavg()[1]:.1f} over the last 5 minutes",
        "versions": {name: version(name) for name in ("torch", "monai", "monailabel")},
        "rows": rows,
    }
    write_summary(options.result, content, markdown(content))


if __name__ == "__main__":
    main()
