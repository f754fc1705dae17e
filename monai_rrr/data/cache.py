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

"""A folder of brain boxes, so that a case is decompressed, verified and down-sampled once."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from monai_rrr.data import brain_box, content, decode, geometry, nifti
from monai_rrr.data.brain_box import BrainBox, make_brain_box
from monai_rrr.data.nifti import check_sha256
from monai_rrr.data.stamp import FileStamp, source_digest
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.files import atomic_write, safe_name, sha256

__all__ = ["BrainBoxCache"]

FORMAT_VERSION = 3


class BrainBoxCache:
    """Brain boxes on disk, keyed by the content of the source files, the parameters and the code that makes them.

    A case takes three files: image and brain mask (``.npy``, mapped into memory when read) and a JSON side-car with
    the rest and the checksums. The side-car is written last, so a case that was interrupted does not count. Checksums
    are compared when a process reads a case for the first time; a damaged case is built again with a warning that
    names the file. Masks and other labels are never read. Safe to share between processes and with data loader workers.

    A process hashes a source file once, and again when its size, times or inode change (see :class:`FileStamp`).

    Args:
        directory: folder of the cache; created when missing.
        spacing: see :func:`make_brain_box`.
        hashes: case id -> modality -> SHA-256, as :attr:`VerifyReport.hashes`: a file that was replaced after it was
            verified is then an error instead of other data in the middle of a training.

    Example:
        >>> cache = BrainBoxCache("cache", spacing=3.0)  # doctest: +SKIP
        >>> cache.build(cases)  # doctest: +SKIP
        >>> cache.get(cases[0]).image.shape  # doctest: +SKIP
        (4, 47, 58, 48)
    """

    def __init__(
        self,
        directory: str | Path,
        spacing: float | None = None,
        hashes: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        if spacing is not None and not spacing > 0:
            raise ValueError(f"spacing must be positive (mm), got {spacing}")
        self.directory = Path(directory)
        self.spacing = spacing
        self.hashes = dict(hashes or {})
        self._code = source_digest(brain_box, content, decode, geometry, nifti)
        self._known: dict[str, tuple[FileStamp, str]] = {}
        self._intact: dict[str, tuple[FileStamp, ...]] = {}

    def expect(self, hashes: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse other contents from now on; cases that are not listed may have any."""
        self.hashes.update(hashes)

    def get(self, case: Mapping[str, Any]) -> BrainBox:
        """Return the brain box of a case, from the cache when it is there and intact.

        Raises:
            DataError: When a source file is missing, damaged, not the one that was verified, or does not fit the
                others; ``cache-unwritable``.
        """
        sources = {name: self._hash(case, name) for name in case["modalities"]}
        stem = self._stem(case, sources)
        if self._side_car(stem).exists():
            try:
                return self._load(stem)
            except (OSError, ValueError) as error:
                message = f"cache of case {case['case_id']} is damaged and is built again: {error}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        # With the hashes, so that a file that changes just now can't be stored under the name of its old content.
        box = make_brain_box(case, self.spacing, sources)
        try:
            self._store(stem, box)
            return self._load(stem)
        except OSError as error:
            message = f"expected a folder to write to, got {error.strerror or error}"
            raise DataError("cache-unwritable", message, case_id=box.case_id, path=self.directory) from error

    def build(
        self,
        cases: Sequence[Mapping[str, Any]],
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Make sure that every case is in the cache.

        Args:
            cases: the datalist.
            workers: number of threads; 0 works in the calling one.
            progress: called with (done, total) after each case.

        Raises:
            DatasetError: With the faults of all cases, after all of them were tried.
        """
        faults: list[DataError] = []

        def attempt(case: Mapping[str, Any]) -> DataError | None:
            try:
                self.get(case)
            except DataError as error:
                return error
            return None

        with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
            results = pool.map(attempt, cases) if workers > 0 else map(attempt, cases)
            for done, fault in enumerate(results, start=1):
                faults += [] if fault is None else [fault]
                if progress is not None:
                    progress(done, len(cases))
        if faults:
            raise DatasetError(faults)

    def key(self, case: Mapping[str, Any]) -> str:
        """Return the SHA-256 over the contents of the case's images, the parameters and the code."""
        return self._key(case, {name: self._hash(case, name) for name in case["modalities"]})

    def _key(self, case: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
        volumes = case.get("volumes") or {}
        sources = [[name, hashes[name], volumes.get(name)] for name in sorted(hashes)]
        made_by = {"format": FORMAT_VERSION, "code": self._code, "spacing": self.spacing}
        return hashlib.sha256(json.dumps({**made_by, "sources": sources}).encode()).hexdigest()

    def _hash(self, case: Mapping[str, Any], name: str) -> str:
        path, case_id = str(case["modalities"][name]), str(case["case_id"])
        try:
            now, stamp = time.time_ns(), FileStamp.of(path)
            known = self._known.get(path)
            if known is None or known[0] != stamp:
                digest = sha256(path)
                known = (stamp, digest)
                if stamp.settled(now):
                    self._known[path] = known
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            message = f"can't be read: {reason}"
            raise DataError("file-missing", message, case_id=case_id, field=name, path=path) from error
        check_sha256(known[1], self.hashes.get(case_id, {}).get(name), case_id, name, path)
        return known[1]

    def _stem(self, case: Mapping[str, Any], hashes: Mapping[str, str]) -> Path:
        return self.directory / f"{safe_name(str(case['case_id']))}-{self._key(case, hashes)[:16]}"

    @staticmethod
    def _side_car(stem: Path) -> Path:
        return stem.with_name(stem.name + ".json")

    @staticmethod
    def _arrays(stem: Path) -> dict[str, Path]:
        return {part: stem.with_name(f"{stem.name}.{part}.npy") for part in ("image", "brain")}

    def _store(self, stem: Path, box: BrainBox) -> None:
        meta = {name: np.asarray(value).tolist() for name, value in vars(box).items() if name not in ("image", "brain")}
        meta["files"] = {}
        # Z first: the slices of a slab are then one run of bytes.
        for part, array in (("image", box.image.transpose(0, 3, 1, 2)), ("brain", box.brain.transpose(2, 0, 1))):
            write = partial(np.save, arr=np.ascontiguousarray(array), allow_pickle=False)
            meta["files"][part] = atomic_write(self._arrays(stem)[part], write)
        side_car = {"sha256": _digest(meta), "content": meta}
        atomic_write(self._side_car(stem), json.dumps(side_car, indent=1).encode())

    def _load(self, stem: Path) -> BrainBox:
        meta = _read_side_car(self._side_car(stem))
        paths = self._arrays(stem)
        stamps = tuple(FileStamp.of(path) for path in paths.values())
        if self._intact.get(str(stem)) != stamps:
            for part, path in paths.items():
                if sha256(path) != meta["files"][part]:
                    raise ValueError(f"{path} does not have the checksum in its side-car")
            self._intact[str(stem)] = stamps
        image, brain = (_mapped(path) for path in paths.values())
        shape = meta["source_shape"]
        return BrainBox(
            case_id=str(meta["case_id"]),
            image=image.transpose(0, 2, 3, 1),
            brain=brain.transpose(1, 2, 0),
            present=np.asarray(meta["present"], dtype=bool),
            mean=np.asarray(meta["mean"], dtype=np.float32),
            std=np.asarray(meta["std"], dtype=np.float32),
            slope=np.asarray(meta["slope"], dtype=np.float32),
            affine=np.asarray(meta["affine"], dtype=np.float64),
            source_affine=np.asarray(meta["source_affine"], dtype=np.float64),
            source_shape=(int(shape[0]), int(shape[1]), int(shape[2])),
            tag_grid=(float(meta["tag_grid"][0]), float(meta["tag_grid"][1])),
            source_header=np.asarray(meta["source_header"], dtype=np.float64),
            source_sha256={str(name): str(digest) for name, digest in meta["source_sha256"].items()},
        )


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_side_car(path: Path) -> dict[str, Any]:
    try:
        side_car = json.loads(path.read_text(encoding="utf-8"))
        content: dict[str, Any] = side_car["content"]
        intact = side_car["sha256"] == _digest(content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} can't be understood ({error})") from error
    if not intact:
        raise ValueError(f"{path} does not have its own checksum")
    return content


def _mapped(path: Path) -> NDArray[Any]:
    """Map an array into memory; unlike NumPy's, the mapping holds no file handle, so thousands can be kept."""
    with path.open("rb") as file:
        try:
            shape, dtype = _header(file)
        except SystemError:
            # Python before 3.11.8 can fail to parse when threads parse at once (gh-106905); NumPy parses headers.
            file.seek(0)
            shape, dtype = _header(file)
        offset = file.tell()
    whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    array = whole[offset:].view(dtype).reshape(shape)
    array.flags.writeable = False
    return array


def _header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype
