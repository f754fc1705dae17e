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
"""A small clean data set and ways to damage it; a tiny training, in this process and as a process of its own."""

from __future__ import annotations

import gzip
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_rrr.data import derive_tags, load_datalist, verify_dataset, write_tags
from monai_rrr.data.verify import VerifyReport
from monai_rrr.utils.enums import MODALITIES

SHAPE = (32, 30, 26)
AFFINE = np.array([[-1.0, 0, 0, 10], [0, -1, 0, 12], [0, 0, 1, 5], [0, 0, 0, 1]])
SUFFIX = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "label": "seg"}
CASES = ("case_a", "case_b", "case_c", "case_d")
BAD = "case_b"


@dataclass(frozen=True)
class Cohort:
    """Four cases in a folder, the second of which gets the faults; labels follow brats2018."""

    root: Path

    def file(self, field: str, case_id: str = BAD) -> Path:
        return self.root / case_id / f"{case_id}_{SUFFIX[field]}.nii.gz"

    def rewrite(
        self,
        field: str,
        change: Callable[[np.ndarray], np.ndarray] = lambda array: array,
        affine: np.ndarray = AFFINE,
        case_id: str = BAD,
    ) -> Path:
        path = self.file(field, case_id)
        array = np.asarray(nib.load(path).dataobj).copy()
        nib.save(nib.Nifti1Image(change(array), affine), path)
        return path

    def header(self, field: str, **values: Any) -> Path:
        """Set raw header fields, which nibabel itself would refuse or repair."""
        path = self.file(field)
        raw = bytearray(gzip.decompress(path.read_bytes()))
        fields = nib.Nifti1Header(bytes(raw[:348]), check=False)
        for name, value in values.items():
            fields[name] = value
        raw[:348] = fields.binaryblock
        path.write_bytes(gzip.compress(bytes(raw)))
        return path

    def tags(self, name: str = "tags.csv") -> Path:
        path = self.root.parent / name
        write_tags(path, derive_tags(load_datalist(self.root, with_labels=True), "brats2018"))
        return path

    @staticmethod
    def shown(field: str, case_id: str = BAD) -> str:
        """Return the path that a fault must show: relative to the data."""
        return str(Path(case_id) / f"{case_id}_{SUFFIX[field]}.nii.gz")

    def faults(self, convention: str | None = "brats2018", **options: Any) -> list[tuple[str | None, ...]]:
        """Verify, and return code, case, field and path of each fault."""
        report = self.verify(convention, **options)
        return [(fault.code, fault.case_id, fault.field, fault.path) for fault in report.faults]

    def verify(self, convention: str | None = "brats2018", **options: Any) -> VerifyReport:
        return verify_dataset(self.root, convention, **options)


@pytest.fixture(scope="session")
def clean_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clean")
    generator = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(size) - size / 2 for size in SHAPE), indexing="ij"))
    files = {}
    for number, case_id in enumerate(CASES):
        radius = np.linalg.norm(grid + np.array([0, number, number]).reshape(3, 1, 1, 1), axis=0)
        label = np.select([radius < 3, radius < 5, radius < 7], [1, 4, 2], 0).astype(np.uint8)
        arrays = {
            name: np.where(np.linalg.norm(grid, axis=0) < 12, generator.normal(500, 90, SHAPE), 0).astype(np.int16)
            for name in MODALITIES
        }
        for name, array in {**arrays, "label": label}.items():
            path = folder / f"{case_id}_{SUFFIX[name]}.nii.gz"
            nib.save(nib.Nifti1Image(array, AFFINE), path)
            files[f"{case_id}/{path.name}"] = path.read_bytes()
    return files


@pytest.fixture
def cohort(tmp_path: Path, clean_files: dict[str, bytes]) -> Cohort:
    """Return a clean data set of one's own."""
    root = tmp_path / "data"
    for name, content in clean_files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return Cohort(root)


SCRIPT = Path(__file__).with_name("tiny_training.py")


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(one_thread: None) -> ModuleType:
    """Return the module ``tiny_training``."""
    spec = importlib.util.spec_from_file_location("tiny_training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_training"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reference(tiny: ModuleType) -> dict[str, object]:
    """Return the result of the tiny training that nothing interrupts."""
    training = tiny.Training().run()
    return {"digest": training.digest(), "seen": training.seen}


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts the tiny training as a process."""

    def begin(folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [sys.executable, *launcher, str(SCRIPT), str(folder), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    return begin
