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

"""Masks of several annotators as one tensor, as a transform of a MONAI pipeline."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample, Transform
from torch import Tensor

from monai_rrr.data.nifti import locate, read_verified
from monai_rrr.errors import DataError
from monai_rrr.utils.class_map import UNKNOWN, to_classes
from monai_rrr.utils.conventions import LabelConvention, get_convention, round_labels
from monai_rrr.utils.enums import REGIONS

__all__ = ["LoadAnnotationsd"]


class LoadAnnotationsd(Transform):
    """Replace the paths of ``annotations`` by the masks, on the grid of the image.

    The sample gets ``annotations`` (int8, ``RXYZ``: 0 background, 1 NCR, 2 ED, 3 ET, and -1 where a class isn't known:
    annotators who didn't draw the case, regions they leave out, voxels outside of their image), ``annotated`` (bool,
    ``R``: who drew the case) and, when weights are given, ``annotator_weight`` (float32, ``R``). Nothing is drawn, so
    MONAI's ``CacheDataset`` and ``PersistentDataset`` keep the result.

    The image is what :class:`~monai_rrr.data.LoadBrainBoxd` gives, or our ``WholeVolumed`` after it, or a
    ``MetaTensor`` such as MONAI's ``LoadImaged`` gives; ``annotations`` is then a ``MetaTensor`` too, which spatial
    transforms of MONAI move along (nearest voxel).

    Args:
        annotators: all ids, in the order of ``R``; a case may have any of them.
        convention: label convention of the files.
        weights: weight of each annotator, see :func:`~monai_rrr.data.annotator_weights`.
        image_key: image that gives the grid.

    Raises:
        DataError: When a file is damaged or of another convention, or a case has an annotator who isn't listed.
        ValueError: When ids occur twice, or there is not one weight for each.

    Example:
        >>> from monai.transforms import Compose, LoadImaged, EnsureChannelFirstd
        >>> load = LoadAnnotationsd(["a1", "a2"], "brats2018")
        >>> steps = [LoadImaged("image"), EnsureChannelFirstd("image"), load]  # doctest: +SKIP
        >>> Compose(steps)(case)["annotations"].shape  # doctest: +SKIP
        torch.Size([2, 240, 240, 155])
    """

    def __init__(
        self,
        annotators: Sequence[str],
        convention: str | LabelConvention,
        weights: Sequence[float] | Tensor | None = None,
        image_key: str = "image",
    ) -> None:
        self.annotators = tuple(annotators)
        self.convention = get_convention(convention)
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        self.image_key = image_key
        if not self.annotators or len(set(self.annotators)) < len(self.annotators):
            raise ValueError(f"expected different annotator ids, got {self.annotators}")
        if self.weights is not None and self.weights.shape != (len(self.annotators),):
            raise ValueError(f"expected one weight for each of {self.annotators}, got {self.weights.tolist()}")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with the masks."""
        case_id, entries = str(data.get("case_id")), dict(data.get("annotations") or {})
        unknown = sorted(set(entries) - set(self.annotators))
        if unknown:
            message = f"expected annotators out of {', '.join(self.annotators)}, got {', '.join(unknown)}"
            raise DataError("annotator-unknown", message, case_id=case_id, field="annotations")
        image = data[self.image_key]
        shape = tuple(image.shape[1:])
        affine = torch.as_tensor(grid_affine(data, image), dtype=torch.float64)
        masks: Tensor = torch.full((len(self.annotators), *shape), UNKNOWN, dtype=torch.int8)
        for index, name in enumerate(self.annotators):
            if entries.get(name) is not None:
                masks[index] = self._read(entries[name], case_id, name, shape, affine)
        result = dict(data)
        result["annotations"] = MetaTensor(masks, affine=affine) if isinstance(image, MetaTensor) else masks
        result["annotated"] = torch.tensor([entries.get(name) is not None for name in self.annotators])
        if self.weights is not None:
            result["annotator_weight"] = self.weights.clone()
        return result

    def _read(self, entry: Any, case_id: str, name: str, shape: tuple[int, ...], affine: Tensor) -> Tensor:
        path, regions = (entry["path"], entry["regions"]) if isinstance(entry, Mapping) else (entry, REGIONS)
        volume = read_verified(path, case_id=case_id, field=name).canonical()
        try:
            classes = to_classes(round_labels(volume.array), self.convention, regions)
        except DataError as error:
            raise locate(error, case_id, name, path) from None
        # one more than the class, so that what lies outside of the file, which is filled with 0, becomes unknown
        known = torch.from_numpy(np.ascontiguousarray(classes, dtype=np.float32)) + 1
        source = MetaTensor(known[None], affine=torch.from_numpy(volume.affine))
        if tuple(known.shape) == shape and torch.allclose(source.affine, affine, atol=1e-4):
            return (known - 1).to(torch.int8)
        resample = SpatialResample(mode="nearest", padding_mode="zeros")
        moved: Tensor = resample(source, dst_affine=affine, spatial_size=shape)[0].as_subclass(Tensor)
        return (moved.round() - 1).to(torch.int8)


def grid_affine(data: Mapping[Hashable, Any], image: Any) -> Any:
    """Where the image lies: brain boxes and whole volumes have it beside the image."""
    if "affine" in data:
        return data["affine"]
    return data["geometry"]["affine"] if "geometry" in data else image.affine
