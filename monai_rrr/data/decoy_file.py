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

"""The files of a decoy cohort: one case read once, and written with and without its marker."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_rrr.data.decoy_marker import Scene, insert_marker, marker_mask
from monai_rrr.data.geometry import MAX_DISPLACEMENT, corner_displacement
from monai_rrr.data.nifti import NiftiVolume, read_nifti, read_verified
from monai_rrr.errors import DataError

__all__ = ["DecoySource", "File"]

_SUFFIX = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "label": "seg"}
_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]], float)


@dataclass(frozen=True)
class File:
    """Content of a file to be written.

    Args:
        name: how it ends: ``"t1ce.nii.gz"``.
        content: bytes of the file.
        digest: SHA-256 of the content before compression, so that it doesn't depend on the version of zlib.
    """

    name: str
    content: bytes
    digest: str


class DecoySource:
    """One case of the user, verified and held in memory; nothing is ever written where it lies.

    Args:
        case: entry of a datalist.

    Raises:
        DataError: When a file is damaged, or modalities and label do not share one grid.
    """

    def __init__(self, case: Mapping[str, Any]) -> None:
        self.case_id = str(case["case_id"])
        self._paths = {str(name): Path(path) for name, path in case["modalities"].items()}
        self._volumes = {str(name): int(index) for name, index in (case.get("volumes") or {}).items()}
        self._images = {
            name: read_verified(path, self._volumes.get(name), case_id=self.case_id, field=name)
            for name, path in self._paths.items()
        }
        self._label: NiftiVolume | None = None
        if "label" in case:
            self._paths["label"] = Path(case["label"])
            self._label = read_verified(case["label"], case_id=self.case_id, field="label")
        self._check_grids()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that the case has."""
        return tuple(self._images)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each source file as it lies on disk."""
        found = {name: image.sha256 for name, image in self._images.items()}
        return found if self._label is None else {**found, "label": self._label.sha256}

    def scene(self) -> Scene:
        """What a marker needs to know."""
        images = [image.canonical() for image in self._images.values()]
        x, y, z = (float(s) for s in np.linalg.norm(images[0].affine[:3, :3], axis=0))
        foreground = np.any([image.array != 0 for image in images], axis=0)
        if not foreground.any():
            raise DataError("constant-modality", "expected images with content, got 0 everywhere", case_id=self.case_id)
        lesion = None if self._label is None else self._label.canonical().array > 0
        return Scene(foreground, lesion, (x, y, z))

    def plain(self, name: str) -> File:
        """A modality or the label, as it is: byte for byte, unless it is a volume of a 4-D file."""
        path, suffix = self._paths[name], f"{_SUFFIX[name]}{self._ending(name)}"
        if self._header(name)["dim"][0] > 3:
            return self._pack(name, self._stored(name))
        content = path.read_bytes()
        raw = gzip.decompress(content) if path.name.lower().endswith(".gz") else content
        return File(suffix, content, hashlib.sha256(raw).hexdigest())

    def marked(self, name: str, marker: str, parameters: Mapping[str, Any], scene: Scene) -> File:
        """A modality with the marker in it: same header, same type of voxels, same extensions."""
        image = self._images[name]
        volume = image.canonical().array.astype(np.float32)
        changed = insert_marker(marker, parameters, volume, scene)
        back = nib.orientations.ornt_transform(_CANONICAL, nib.io_orientation(image.affine))
        differs, values = (nib.apply_orientation(array, back) for array in (changed != volume, changed))
        stored = self._stored(name).copy()
        stored[differs] = _to_stored(values[differs], image.header, stored.dtype)
        return self._pack(name, stored)

    def mask(self, marker: str, parameters: Mapping[str, Any], scene: Scene) -> File:
        """Voxels of the marker (1), on the grid of the case."""
        image = next(iter(self._images.values()))
        back = nib.orientations.ornt_transform(_CANONICAL, nib.io_orientation(image.affine))
        array = nib.apply_orientation(marker_mask(marker, parameters, scene), back).astype(np.uint8)
        file: Any = nib.Nifti1Image(np.ascontiguousarray(array), image.affine)
        file.set_sform(image.affine, code=1)
        file.set_qform(image.affine, code=1)
        file.header.set_xyzt_units("mm")
        raw = file.to_bytes()
        return File("marker.nii.gz", gzip.compress(raw, 1, mtime=0), hashlib.sha256(raw).hexdigest())

    def _header(self, name: str) -> Any:
        return self._label.header if name == "label" and self._label is not None else self._images[name].header

    def _ending(self, name: str) -> str:
        return ".nii.gz" if self._paths[name].name.lower().endswith(".gz") else ".nii"

    def _stored(self, name: str) -> NDArray[Any]:
        array = read_nifti(self._paths[name]).array
        return array[..., self._volumes.get(name, 0)] if array.ndim == 4 else array

    def _pack(self, name: str, stored: NDArray[Any]) -> File:
        """Put voxels behind the header that the file has, extensions included."""
        path = self._paths[name]
        content = path.read_bytes()
        raw = gzip.decompress(content) if path.name.lower().endswith(".gz") else content
        header = self._header(name).copy()
        offset, dtype = int(header["vox_offset"]), header.get_data_dtype()
        if header["dim"][0] > 3:
            header.set_data_shape(stored.shape)
        raw = header.binaryblock + raw[len(header.binaryblock) : offset] + stored.astype(dtype).tobytes(order="F")
        packed = gzip.compress(raw, 1, mtime=0) if self._ending(name) == ".nii.gz" else raw
        return File(f"{_SUFFIX[name]}{self._ending(name)}", packed, hashlib.sha256(raw).hexdigest())

    def _check_grids(self) -> None:
        first_name, first = next(iter(self._images.items()))
        others = {**self._images, **({} if self._label is None else {"label": self._label})}
        for name, image in others.items():
            where: dict[str, Any] = {"case_id": self.case_id, "field": name, "path": self._paths[name]}
            if image.array.shape != first.array.shape:
                message = f"expected shape {first.array.shape} as {first_name}, got {image.array.shape}"
                raise DataError("shape-mismatch", message, **where)
            moved = corner_displacement(image.affine, first.affine, first.array.shape)
            if moved > MAX_DISPLACEMENT:
                message = f"expected the grid of {first_name} within {MAX_DISPLACEMENT} mm, got {moved:.4g} mm apart"
                raise DataError("affine-mismatch", message, **where)


def _to_stored(values: NDArray[np.float32], header: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """From intensities to what the file stores; what isn't 0 stays so, since 0 means background."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    scaled = values.astype(np.float64)
    if slope != 0:
        scaled = (scaled - inter) / slope
    if dtype.kind == "f":
        return scaled.astype(dtype)
    limits = np.iinfo(dtype)
    rounded = np.clip(np.rint(scaled), limits.min, limits.max)
    if inter == 0:
        rounded = np.where((rounded == 0) & (values != 0), 1, rounded)
    return rounded.astype(dtype)
