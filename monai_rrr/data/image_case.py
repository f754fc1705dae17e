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

"""The case that an image belongs to, when a program hands over the image alone, as labeling servers do."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.transforms import Transform

from monai_rrr.data.datalist import Case
from monai_rrr.data.discovery import EXPECTED_NAMES, find_cases, match_name
from monai_rrr.data.nifti import locate, read_nifti
from monai_rrr.data.stamp import FileStamp
from monai_rrr.errors import DataError
from monai_rrr.utils.enums import MODALITIES
from monai_rrr.utils.weights import load_weights

__all__ = ["CaseOfImaged", "image_case"]

REQUEST = "request"


def image_case(image: str | Path | Sequence[str], modalities: Sequence[str] = MODALITIES) -> Case:
    """Find all modalities of a case from what stands for its image.

    Args:
        image: one file whose name says its modality (``case-t1c.nii.gz``): the others are its siblings in the folder; a
            4-D file with a volume for each of the modalities; a folder with the files of one case; or a list of files.
        modalities: order of the volumes of a 4-D file, and of a list.

    Returns:
        a case as of :func:`~monai_rrr.data.load_datalist`, without label.

    Raises:
        DataError: ``file-missing``; ``modality-unknown``, when nothing says which file or volume is which modality;
            ``ambiguous-file``, when two files claim the same, or a folder holds several cases.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a-t1n.nii.gz", "a-t2f.nii.gz", "b-t1n.nii.gz"):
        ...     (folder / name).touch()
        >>> case = image_case(folder / "a-t2f.nii.gz")
        >>> case["case_id"], sorted(case["modalities"])
        ('a', ['flair', 't1'])
    """
    if not isinstance(image, (str, Path)):
        return _listed([Path(path) for path in image], modalities)
    path = Path(image)
    if path.is_dir():
        return _only(find_cases(path)[0], path)
    if not path.is_file():
        raise DataError("file-missing", "expected an image, there is no such file", path=path)
    named = match_name(path.name)
    if named is None or named[1] == "label":
        return _stacked(path, modalities)
    siblings: dict[str, list[str]] = {}
    for other in sorted(path.parent.iterdir()):
        found = match_name(other.name)
        if found is not None and found[0] == named[0] and found[1] in MODALITIES:
            siblings.setdefault(found[1], []).append(str(other))
    case_id = named[0] or path.resolve().parent.name
    twice = [files for files in siblings.values() if len(files) > 1]
    if twice:
        message = f"expected one file, got {', '.join(Path(file).name for file in twice[0])}"
        raise DataError("ambiguous-file", message, case_id=case_id, path=path.parent, hint="remove all but one")
    return {"case_id": case_id, "modalities": {name: siblings[name][0] for name in MODALITIES if name in siblings}}


class CaseOfImaged(Transform):
    """Let a pipeline that reads cases take the request of a labeling server, which knows an image file and no case.

    A sample with ``case_id`` and ``modalities`` passes as it is. Of any other, ``image`` becomes the case
    (:func:`image_case`), and all else is kept under ``request`` for
    :class:`~monai_rrr.transforms.AnswerLabeld`, which ends such a pipeline. In the first place of a bundle's
    preprocessing it makes MONAI Label's unmodified ``monaibundle`` app understand the bundle.

    That app reads weights into a copy of the network that the postprocessing does not know, so thresholds that are
    saved with the weights would be lost: the weights are read here too, once per file, after their checksum was
    compared.

    Args:
        modalities: see :func:`image_case`.
        network: the one that the postprocessing reads thresholds from. None: there are none.
        load_path: its weights.
        require_manifest: see :func:`~monai_rrr.utils.weights.load_weights`.

    Raises:
        DataError: As :func:`image_case`.
        CheckpointError: As :func:`~monai_rrr.utils.weights.load_weights`.
    """

    def __init__(
        self,
        modalities: Sequence[str] = MODALITIES,
        network: Any = None,
        load_path: str | Path | None = None,
        require_manifest: bool = True,
    ) -> None:
        self.modalities, self.network, self.require_manifest = tuple(modalities), network, require_manifest
        self.load_path = None if load_path is None else Path(load_path)
        self._stamp: FileStamp | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a case."""
        if "case_id" in data and "modalities" in data:
            return dict(data)
        if self.network is not None and self.load_path is not None:
            self._read_weights(self.network, self.load_path)
        rest = {key: value for key, value in data.items() if key != "image"}
        found: dict[Any, Any] = image_case(data["image"], self.modalities)
        return {**found, REQUEST: rest}

    def _read_weights(self, network: Any, path: Path) -> None:
        stamp = FileStamp.of(str(path)) if path.is_file() else None
        if stamp is None or stamp != self._stamp:
            load_weights(network, path, self.require_manifest)
            self._stamp = stamp


def _listed(paths: Sequence[Path], modalities: Sequence[str]) -> Case:
    if len(paths) != len(modalities):
        message = f"expected a file for each of {', '.join(modalities)}, got {len(paths)}"
        raise DataError("modality-unknown", message, field="image", path=paths[0] if paths else None)
    case_id = (match_name(paths[0].name) or ("", ""))[0] or _stem(paths[0])
    return {"case_id": case_id, "modalities": dict(zip(modalities, map(str, paths), strict=True))}


def _stacked(path: Path, modalities: Sequence[str]) -> Case:
    try:
        shape = read_nifti(path).array.shape
    except DataError as error:
        raise locate(error, None, "image", path) from error.__cause__
    count = shape[3] if len(shape) == 4 else 1
    if count != len(modalities):
        raise DataError(
            "modality-unknown",
            f"expected a 4-D file with {len(modalities)} volumes ({', '.join(modalities)}), got {count}",
            field="image",
            path=path,
            hint=f"or a file for each modality, whose name says which: {EXPECTED_NAMES}",
        )
    files = dict.fromkeys(modalities, str(path))
    return {"case_id": _stem(path), "modalities": files, "volumes": {name: i for i, name in enumerate(modalities)}}


def _only(cases: Sequence[Case], folder: Path) -> Case:
    if len(cases) != 1 or not cases[0]["modalities"]:
        names = ", ".join(str(case["case_id"]) for case in cases[:4]) or "none"
        message = f"expected the images of one case, got {len(cases)}: {names}"
        raise DataError("ambiguous-file", message, field="image", path=folder, hint=f"names are {EXPECTED_NAMES}")
    return {"case_id": cases[0]["case_id"], "modalities": cases[0]["modalities"]}


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
