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


"""Synthetic cohorts of multimodal MRI with gliomas, as files in the layout of BraTS 2021."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_rrr.data.anatomy import Subject
from monai_rrr.data.field import Grid
from monai_rrr.data.scanner import Distractors, Scanner
from monai_rrr.data.tumor import Lesion, TumorPlan, grow
from monai_rrr.utils.files import atomic_write

__all__ = ["PHANTOM_VERSION", "generate_cohort"]

Array = NDArray[np.float32]

PHANTOM_VERSION = 1
_FRAME_MM = (240.0, 240.0, 155.0)
_MODALITIES = ("t1", "t1ce", "t2", "flair")


@dataclass(frozen=True)
class _Frame:
    """The stored grid, and the finer grid around the brain on which signals are rendered.

    Args:
        spacing: voxel size in mm.
        reach: half size in mm of the box around the brain.
    """

    spacing: float
    reach: tuple[float, float, float] = (81.0, 96.0, 76.0)

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = (max(1, round(size / self.spacing)) for size in _FRAME_MM)
        return x, y, z

    @property
    def factor(self) -> int:
        return 2 if self.spacing >= 1.5 else 1

    def box(self) -> tuple[slice, slice, slice]:
        half = [min(int(np.ceil(r / self.spacing)), n // 2) for r, n in zip(self.reach, self.shape, strict=True)]
        x, y, z = (slice(n // 2 - h, n - n // 2 + h) for n, h in zip(self.shape, half, strict=True))
        return x, y, z

    def grid(self, factor: int) -> Grid:
        step = self.spacing / factor
        axes = [
            ((np.arange(cut.start * factor, cut.stop * factor) + 0.5) * step - n * self.spacing / 2).astype(np.float32)
            for cut, n in zip(self.box(), self.shape, strict=True)
        ]
        return Grid(*axes)

    def around(self, brain: NDArray[np.bool_], grid: Grid) -> _Frame:
        """Shrink the box to a brain that was sampled on a coarse grid."""
        half = []
        for axis, centers in enumerate((grid.x, grid.y, grid.z)):
            extent = np.abs(centers[brain.any(tuple({0, 1, 2} - {axis}))]).max() + 1.2 * (centers[1] - centers[0])
            half.append(float(min(extent, self.reach[axis])))
        return _Frame(self.spacing, (half[0], half[1], half[2]))

    def reduce(self, fine: Array) -> Array:
        f = self.factor
        x, y, z = (n // f for n in fine.shape)
        return np.asarray(fine.reshape(x, f, y, f, z, f).mean((1, 3, 5)))

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel to world, LPS storage: the BraTS frame, whose voxels of 1 mm have their first center at (0, 239, 0)."""
        affine = np.diag((-self.spacing, -self.spacing, self.spacing, 1.0))
        shift = (self.spacing - 1) / 2
        affine[:3, 3] = (-shift, 239 - shift, shift)
        return affine


def generate_cohort(
    out: str | Path,
    cases: int,
    seed: int = 0,
    spacing: float = 3.0,
    controls: float = 0.1,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write synthetic cases in the layout of BraTS 2021 (label convention ``"brats2018"``).

    Args:
        out: folder that receives one folder per case and the manifest ``cohort.json``.
        cases: number of cases.
        seed: seed of the cohort; a case depends only on the seed and its index (and on ``spacing``, ``controls``).
        spacing: voxel size in mm, between 1 and 10.
        controls: share of tumor-free cases in [0, 1], spread evenly: 0.1 makes the cases 9, 19, 29, ... controls.
        first: index of the first case.
        progress: called with (done, cases) after each case.

    Returns:
        The folders of the cases, in order.

    Raises:
        ValueError: When an argument is out of range.

    Note:
        The anatomy comes from the ICBM152 nonlinear symmetric 2009a templates that nilearn ships; everything else is
        drawn. The data resemble BraTS in layout and contrast, but aren't patients: never report results on them as
        clinical.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as out:
        ...     folder = generate_cohort(out, cases=1, seed=7, spacing=8.0)[0]
        ...     folder.name, nib.load(folder / f"{folder.name}_flair.nii.gz").shape
        ('Phantom_7_0000', (30, 30, 19))
    """
    _check(cases, seed, spacing, controls, first)
    out = Path(out)
    folders: list[Path] = []
    records = []
    for index in range(first, first + cases):
        folder = out / f"Phantom_{seed}_{index:04d}"
        images, label, record = _render(seed, index, spacing, controls)
        _write(folder, {**images, "seg": label}, _Frame(spacing).affine)
        folders.append(folder)
        settings = {"seed": seed, "index": index, "spacing": spacing, "controls": controls}
        records.append({"case_id": folder.name, "version": PHANTOM_VERSION, **settings, **record})
        if progress is not None:
            progress(len(folders), cases)
    _write_manifest(out, records)
    return folders


def _check(cases: int, seed: int, spacing: float, controls: float, first: int) -> None:
    if cases < 1:
        raise ValueError(f"cases must be at least 1, got {cases}")
    if seed < 0 or first < 0:
        raise ValueError(f"seed and first must not be negative, got seed {seed} and first {first}")
    if not 1.0 <= spacing <= 10.0:
        raise ValueError(f"spacing must be between 1 and 10 mm, got {spacing}")
    if not 0.0 <= controls <= 1.0:
        raise ValueError(f"controls must be in [0, 1], got {controls}")


def _is_control(index: int, controls: float) -> bool:
    return int((index + 1) * controls) > int(index * controls)


def _render(
    seed: int, index: int, spacing: float, controls: float
) -> tuple[dict[str, NDArray[np.int16]], NDArray[np.uint8], dict[str, Any]]:
    head, tumor, signs, *scans = np.random.SeedSequence(entropy=seed, spawn_key=(index,)).spawn(3 + len(_MODALITIES))
    subject, rng, coarse = Subject(head), np.random.default_rng(tumor), _Frame(6.0).grid(1)
    rough = subject.tissue(coarse)
    frame = _Frame(spacing).around(rough.brain, coarse)
    fine = frame.grid(frame.factor)
    plan = None
    conspicuity = float(rng.uniform(0.45, 1.05))
    if not _is_control(index, controls):
        plan = TumorPlan.draw(rng, rough, coarse)
        tissue = subject.tissue(fine, plan.push)
        lesion = grow(plan, tissue, fine, rng)
    else:
        tissue = subject.tissue(fine)
        lesion = Lesion(*np.zeros((3, *fine.shape), np.float32))
    other = Distractors.draw(np.random.default_rng(signs), tissue, fine, lesion.whole)
    brain = frame.reduce(tissue.brain.astype(np.float32)) > 0.5
    label = _embed(_label(frame, lesion, brain), frame)
    images = {}
    for modality, stream in zip(_MODALITIES, scans, strict=True):
        scanner = Scanner(modality, conspicuity, np.random.default_rng(stream))
        clean = frame.reduce(scanner.clean(tissue, lesion, other, fine))
        images[modality] = _embed(scanner.acquire(clean, brain, spacing), frame)
    record: dict[str, Any] = {"control": plan is None}
    return images, label, record | ({} if plan is None else {"conspicuity": conspicuity, "tumor": asdict(plan)})


def _label(frame: _Frame, lesion: Lesion, brain: NDArray[np.bool_]) -> NDArray[np.uint8]:
    parts = np.stack([frame.reduce(part) for part in (lesion.ncr, lesion.ed, lesion.et)])
    inside = (parts.sum(0) > 0.5) & brain
    return np.where(inside, np.array([1, 2, 4], np.uint8)[parts.argmax(0)], 0).astype(np.uint8)


def _embed(box: NDArray[Any], frame: _Frame) -> NDArray[Any]:
    full = np.zeros(frame.shape, box.dtype)
    full[frame.box()] = box
    return full[::-1, ::-1]  # RAS to LPS


def _write(folder: Path, arrays: Mapping[str, NDArray[Any]], affine: NDArray[np.float64]) -> None:
    for name, array in arrays.items():
        image: Any = nib.Nifti1Image(np.ascontiguousarray(array), affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        content = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
        atomic_write(folder / f"{folder.name}_{name}.nii.gz", content)


def _write_manifest(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Add the cases to ``cohort.json``; earlier runs into the same folder stay listed."""
    path = out / "cohort.json"
    known = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else []
    cases = {record["case_id"]: record for record in (*known, *records)}
    manifest = {"version": PHANTOM_VERSION, "cases": [cases[case_id] for case_id in sorted(cases)]}
    atomic_write(path, (json.dumps(manifest, indent=1) + "\n").encode())
