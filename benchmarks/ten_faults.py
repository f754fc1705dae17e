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

"""Ten faults of a data set, and who notices: MONAI's loaders, TorchIO's and this package's verifier on the same files.

    pip install -e ".[bench]"
    python benchmarks/ten_faults.py

writes ``benchmarks/results/ten_faults.json`` and ``.md``. Without TorchIO its column says that it was not run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import torch
from monai.transforms import Compose, ConcatItemsd, EnsureChannelFirstd, LoadImaged

import monai_rrr
from monai_rrr.data import verify_dataset
from monai_rrr.utils.enums import MODALITIES

RESULTS = Path(__file__).parent / "results"
SHAPE = (48, 46, 40)
AFFINE = np.array([[-1.0, 0, 0, 20], [0, -1, 0, 21], [0, 0, 1, -18], [0, 0, 0, 1]])
SUFFIX = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "label": "seg"}
BAD = "case_b"
NOT_RUN = "not run"

Change = Callable[[np.ndarray], np.ndarray]


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)


def make_cohort(root: Path) -> None:
    """Two clean cases: four modalities of noise in a ball, nested spheres as label."""
    generator = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(size) - size / 2 for size in SHAPE), indexing="ij"))
    for shift, case_id in enumerate(("case_a", BAD)):
        (root / case_id).mkdir(parents=True)
        radius = np.linalg.norm(grid + np.array([0, shift, shift]).reshape(3, 1, 1, 1), axis=0)
        for name in MODALITIES:
            image = np.where(np.linalg.norm(grid, axis=0) < 18, generator.normal(500, 90, SHAPE), 0)
            save(file_of(root, name, case_id), image.astype(np.int16))
        label = np.select([radius < 4, radius < 7, radius < 10], [1, 4, 2], 0).astype(np.uint8)
        save(file_of(root, "label", case_id), label)


def file_of(root: Path, field: str, case_id: str = BAD) -> Path:
    return root / case_id / f"{case_id}_{SUFFIX[field]}.nii.gz"


def rewrite(path: Path, change: Change, affine: np.ndarray = AFFINE) -> None:
    save(path, change(np.asarray(nib.load(path).dataobj).copy()), affine)


def with_value(value: float) -> Change:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[24, 23, 20] = value
        return array

    return change


def cut(root: Path) -> None:
    path = file_of(root, "flair")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(root: Path) -> None:
    """Change one bit such that the stream still decodes, as four flips of five do in real files."""
    path = file_of(root, "flair")
    raw, original = path.read_bytes(), np.asarray(nib.load(path).dataobj).copy()
    for position in np.random.default_rng(0).integers(len(raw) // 4, 3 * len(raw) // 4, 500).tolist():
        changed = bytearray(raw)
        changed[position] ^= 8
        path.write_bytes(changed)
        try:
            altered = np.asarray(nib.load(path).dataobj)
        except Exception:
            continue
        if not np.array_equal(altered, original):
            return
    raise RuntimeError("expected a silent flip among 500, found none")


def shift(root: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 3] += 40
    rewrite(file_of(root, "t1"), lambda array: array, affine)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "file cut in half": (cut, "flair"),
    "one bit flipped": (flip, "flair"),
    "one NaN voxel": (lambda root: rewrite(file_of(root, "t2"), with_value(np.nan)), "t2"),
    "one Inf voxel": (lambda root: rewrite(file_of(root, "t2"), with_value(np.inf)), "t2"),
    "all-zero modality": (lambda root: rewrite(file_of(root, "t1c"), np.zeros_like), "t1c"),
    "40 mm origin shift of one modality": (shift, "t1"),
    "shape mismatch": (lambda root: rewrite(file_of(root, "t2"), lambda array: array[..., :-1]), "t2"),
    "label value 3 not declared": (
        lambda root: rewrite(file_of(root, "label"), lambda array: np.where(array == 4, 3, array).astype(np.uint8)),
        "label",
    ),
    "empty foreground": (lambda root: rewrite(file_of(root, "label"), np.zeros_like), "label"),
    "missing modality": (lambda root: file_of(root, "t1c").unlink(), "t1c"),
}


def monai_keys(root: Path) -> None:
    """One key per modality, joined by ConcatItemsd."""
    keys = [*MODALITIES, "label"]
    load = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), ConcatItemsd(MODALITIES, "image")])
    for case_id in ("case_a", BAD):
        load({name: file_of(root, name, case_id) for name in keys})


def monai_list(root: Path) -> None:
    """All modalities as a list under one key."""
    load = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    for case_id in ("case_a", BAD):
        images = [file_of(root, name, case_id) for name in MODALITIES]
        load({"image": images, "label": file_of(root, "label", case_id)})


def torchio_subject(root: Path) -> None:
    """A subject, read whole, with TorchIO's own check that its images are in one place."""
    tio = importlib.import_module("torchio")
    for case_id in ("case_a", BAD):
        images = {name: tio.ScalarImage(file_of(root, name, case_id)) for name in MODALITIES}
        subject = tio.Subject(**images, label=tio.LabelMap(file_of(root, "label", case_id)))
        subject.load()
        subject.check_consistent_attribute("shape")
        subject.check_consistent_attribute("affine")


def ours(root: Path, field: str) -> str:
    report = verify_dataset(root, "brats2018", require=MODALITIES)
    named = [entry for entry in (*report.faults, *report.notes) if entry.case_id == BAD]
    if not named:
        return "accepts"
    entry = named[0]
    shown = f"{entry}"
    complete = BAD in shown and field in shown and (entry.path is not None or entry.code == "modality-missing")
    return ("rejects" if report.faults else "reports") + (", named" if complete else ", NOT NAMED")


def outcome(load: Callable[[Path], None], root: Path, field: str) -> str:
    """Whether a loader notices, and whether its messages name the file, or the case and the key."""
    try:
        load(root)
    except Exception as error:
        texts, link = [], error
        while link is not None:
            texts.append(str(link))
            link = link.__cause__ or link.__context__
        text = " ".join(texts)
        named = file_of(root, field).name in text or f"`{field}`" in text
        return "rejects, named" if named else "rejects, no file name"
    return "accepts"


def measure() -> dict[str, Any]:
    loaders: dict[str, Callable[[Path], None] | None] = {
        "MONAI, one key per modality": monai_keys,
        "MONAI, list in one key": monai_list,
    }
    versions = {m.__name__: str(m.__version__) for m in (monai_rrr, monai, nib, np, torch)}
    try:
        versions["torchio"] = str(importlib.import_module("torchio").__version__)
        loaders["TorchIO + consistency check"] = torchio_subject
    except ImportError as error:
        print(f"WARNING: TorchIO is NOT run ({error}): pip install -e '.[bench]'", file=sys.stderr)
        loaders["TorchIO + consistency check"] = None
    table: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder, "clean")
        make_cohort(clean)
        if not verify_dataset(clean, "brats2018", require=MODALITIES).ok:
            raise RuntimeError("the clean cases have a fault")
        for load in filter(None, loaders.values()):
            load(clean)
        for number, (fault, (inject, field)) in enumerate(FAULTS.items()):
            root = Path(folder, str(number))
            make_cohort(root)
            inject(root)
            row = {name: NOT_RUN if load is None else outcome(load, root, field) for name, load in loaders.items()}
            table[fault] = {**row, "monai_rrr verify": ours(root, field)}
    score = {
        name: sum(not row[name].startswith("accepts") for row in table.values())
        for name in next(iter(table.values()))
        if next(iter(table.values()))[name] != NOT_RUN
    }
    return {
        "what": "ten faults, one at a time in one file of two small cases; who notices",
        "command": "python benchmarks/ten_faults.py",
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} shared {platform.machine().replace('_', '-')} cores",
        "versions": {"python": platform.python_version(), **versions},
        "table": table,
        "noticed": score,
        "of": len(table),
    }


def as_markdown(result: dict[str, Any]) -> str:
    names = list(next(iter(result["table"].values())))
    score = [
        f"**{result['noticed'][name]}/{result['of']}**" if name in result["noticed"] else NOT_RUN for name in names
    ]
    lines = [
        "# Ten faults: who notices",
        "",
        f"One fault at a time in one file of two small cases (four modalities and a label); {result['date']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f". Command: `{result['command']}`.",
        "",
        f"| fault | {' | '.join(names)} |",
        "|" + "---|" * (len(names) + 1),
        *(f"| {fault} | {' | '.join(row[name] for name in names)} |" for fault, row in result["table"].items()),
        f"| **noticed** | {' | '.join(score)} |",
        "",
        "`named`: the message has the file, or for a missing one case and modality. An empty foreground is legal "
        "(a control without tumor), so it is reported and not rejected. The flipped bit is one that still decodes.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    result = measure()
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "ten_faults.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = as_markdown(result)
    (arguments.output / "ten_faults.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
