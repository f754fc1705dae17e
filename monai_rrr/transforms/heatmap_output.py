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

"""From heatmaps on the network's grid to heatmaps and label maps in the geometry of the input files."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from torch import Tensor, nn

from monai_rrr.errors import InferenceError
from monai_rrr.transforms.regions import to_labels
from monai_rrr.transforms.source_grid import to_source_grid
from monai_rrr.utils.checks import check_heatmaps
from monai_rrr.utils.conventions import LabelConvention
from monai_rrr.utils.enums import MODALITIES, REGIONS
from monai_rrr.utils.files import safe_name
from monai_rrr.utils.nifti_file import affine_geometry, nifti_bytes
from monai_rrr.utils.provenance import Provenance, write_results

__all__ = ["HeatmapToLabeld", "HeatmapToSourced", "SaveHeatmapsd"]


class HeatmapToSourced(MapTransform):
    """Bring heatmaps back to the voxels, axes and affine of the case's own files.

    Reads ``geometry`` and ``case_id`` of :class:`~monai_rrr.transforms.whole_volume.WholeVolumed`.

    Args:
        keys: heatmaps, ``K H W D`` or ``(1+M) K H W D``; they become ``MetaTensor`` with ``X Y Z`` of the source file.
        clamp: keep them in [0, 1]; ``False`` for relevance, which has a sign and any size.
        allow_missing_keys: leave out keys that the data lack.

    Raises:
        InferenceError: ``heatmap-not-finite``.
    """

    def __init__(self, keys: KeysCollection, clamp: bool = True, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clamp = clamp

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the heatmaps replaced."""
        result = dict(data)
        geometry = data["geometry"]
        affine = torch.as_tensor(np.asarray(geometry["source_affine"], dtype=np.float64))
        for key in self.key_iterator(result):
            heatmap = torch.as_tensor(data[key]).float()
            check_heatmaps(heatmap, case_id=str(data["case_id"]))
            flat = to_source_grid(heatmap.flatten(0, heatmap.ndim - 4), geometry)
            moved = torch.from_numpy(flat).unflatten(0, heatmap.shape[:-3])
            moved = moved.clamp(0, 1) if self.clamp else moved
            # with an extension, as SaveImage takes what follows the last dot of a case id for one and cuts it off
            meta = {"filename_or_obj": safe_name(str(data["case_id"])) + ".nii.gz"}
            result[key] = MetaTensor(moved, affine=affine, meta=meta)
        return result


class HeatmapToLabeld(Transform):
    """Turn the fused heatmaps into one label map at the network's calibrated operating point.

    A voxel belongs to a region when its heatmap is greater than the threshold; axial slices with less area than the
    calibrated minimum are cleared; regions are then nested (ET within TC within WT).

    Args:
        network: has the buffer ``operating_point`` (``K 2``), see
            :class:`~monai_rrr.handlers.calibration.TagCalibrationHandler`.
        convention: label values to write.
        key: heatmaps in source geometry, ``K X Y Z`` or ``(1+M) K X Y Z`` (the first is the fused one).
        output_key: where the label map goes, ``1 X Y Z`` uint8.

    Raises:
        InferenceError: ``heatmap-not-finite``, or ``operating-point``, when that is not finite.
    """

    def __init__(
        self, network: nn.Module, convention: str | LabelConvention, key: str = "pred", output_key: str = "label_map"
    ) -> None:
        self.network, self.convention, self.key, self.output_key = network, convention, key, output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the label map added."""
        heatmap = data[self.key]
        fused = torch.as_tensor(heatmap)
        fused = fused[0] if fused.ndim == 5 else fused
        case_id = None if data.get("case_id") is None else str(data["case_id"])
        check_heatmaps(fused, case_id=case_id)
        affine = np.asarray(heatmap.affine, dtype=np.float64)
        axial = int(np.argmax(np.abs(affine[2, :3] / np.linalg.norm(affine[:3, :3], axis=0))))
        plane = [axis for axis in range(3) if axis != axial]
        area_of_voxel = float(np.prod(np.linalg.norm(affine[:3, plane], axis=0)))
        points = cast(Tensor, self.network.operating_point).detach().cpu()
        if not torch.isfinite(points).all():
            message = f"expected finite thresholds and areas, got {points.tolist()}"
            raise InferenceError("operating-point", message, case_id=case_id, hint="calibrate the network again")
        mask = fused > points[:, 0].view(-1, 1, 1, 1)
        area = mask.sum([1 + axis for axis in plane], keepdim=True) * area_of_voxel
        mask = mask & (area >= points[:, 1].view(-1, 1, 1, 1))
        nested = torch.stack([mask[: index + 1].all(0) for index in range(len(mask))])
        label = to_labels(nested, self.convention)
        result = dict(data)
        result[self.output_key] = MetaTensor(label[None].to(torch.uint8), meta=dict(heatmap.meta))
        return result


class SaveHeatmapsd(Transform):
    """Write the label map, the fused heatmap of every region and, if there, those of every modality as NIfTI files.

    ``<output_dir>/<case>/<case>_pred.nii.gz``, ``<case>_heatmap_<region>.nii.gz``,
    ``<case>_heatmap_<modality>_<region>.nii.gz``, ``<case>_relevance_<modality>_<region>.nii.gz``,
    ``<case>_class_scores.json`` (region -> probability) and, last, ``<case>_provenance.json``; all of them or none. The
    same input gives the same bytes. Every reader places the voxels as it places those of the input, by its codes and
    units.

    Args:
        output_dir: created when missing.
        key: heatmaps in source geometry.
        label_key: label map.
        regions: names of the classes.
        modalities: names of the modalities; absent ones (all 0) are not written.
        provenance: what to record beside the results.
        relevance_key: relevance in source geometry, ``M K X Y Z``.
        score_key: probabilities of the classes, ``K``.

    Raises:
        InferenceError: ``heatmap-not-finite``.
    """

    def __init__(
        self,
        output_dir: str,
        key: str = "pred",
        label_key: str = "label_map",
        regions: Sequence[str] = REGIONS,
        modalities: Sequence[str] = MODALITIES,
        provenance: Provenance | None = None,
        relevance_key: str = "relevance",
        score_key: str = "class_score",
    ) -> None:
        self.output_dir, self.key, self.label_key = output_dir, key, label_key
        self.relevance_key, self.score_key = relevance_key, score_key
        self.regions, self.modalities = tuple(regions), tuple(modalities)
        self.provenance = provenance or Provenance()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files and return the data."""
        heatmap = data[self.key]
        case_id = str(data["case_id"])
        maps = torch.as_tensor(heatmap)
        maps = maps if maps.ndim == 5 else maps[None]
        check_heatmaps(maps, case_id=case_id, modalities=self.modalities, regions=self.regions)
        arrays: dict[str, Tensor] = {}
        if self.label_key in data:
            arrays["pred"] = torch.as_tensor(data[self.label_key])[0].to(torch.uint8)
        for group, name in enumerate(["", *(f"{m}_" for m in self.modalities)][: len(maps)]):
            if group and not maps[group].any():
                continue
            for index, region in enumerate(self.regions):
                arrays[f"heatmap_{name}{region}"] = maps[group, index].float()
        if self.relevance_key in data:
            for name, group_maps in zip(self.modalities, torch.as_tensor(data[self.relevance_key]), strict=True):
                for region, one in zip(self.regions, group_maps, strict=True):
                    if group_maps.any():
                        arrays[f"relevance_{name}_{region}"] = one.float()
        header = data.get("source_header")
        geometry = affine_geometry(heatmap.affine) if header is None else header
        contents = {f"_{name}.nii.gz": nifti_bytes(array.cpu().numpy(), geometry) for name, array in arrays.items()}
        if self.score_key in data:
            scores = dict(zip(self.regions, (round(float(p), 6) for p in data[self.score_key]), strict=True))
            contents["_class_scores.json"] = json.dumps(scores, indent=2).encode() + b"\n"
        inputs = {name: digest for name, digest in data.get("source_sha256", {}).items() if digest}
        stem = safe_name(case_id)
        write_results(Path(self.output_dir) / stem, stem, contents, self.provenance, inputs)
        return dict(data)
