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

"""Explain any MONAI network on one case, in the case's own geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForeground,
    NormalizeIntensity,
    Orientation,
    ResizeWithPadOrCrop,
    Spacing,
)
from torch import Tensor, nn

from monai_rrr.attribution.gradcam import GradCAM
from monai_rrr.attribution.normalize import normalize_max
from monai_rrr.attribution.score import ClassScore, volume_score
from monai_rrr.data.geometry import MAX_DISPLACEMENT, corner_displacement
from monai_rrr.data.nifti import NiftiVolume, read_verified
from monai_rrr.errors import DataError, InferenceError
from monai_rrr.inferers.heatmap import explain_image
from monai_rrr.report.image_grid import ImageGrid
from monai_rrr.utils.nifti_file import header_geometry

__all__ = ["Explanation", "explain_network", "mri_preprocessing", "read_image"]


@dataclass(frozen=True)
class Explanation:
    """Heatmaps of one case.

    Args:
        heatmap: ``THWD``, float32, on the grid of the given image, larger is more evidence; 0 outside of what the
            network saw.
        affine: 4x4, voxel index to mm in RAS, that of the given image.
        class_idx: the T explained classes.
        logits: what the network returned, ``K``, or ``KHWD`` on the grid that the network saw.
        header: where the header of the image's file puts its voxels, see
            :func:`~monai_rrr.utils.nifti_file.header_geometry`; empty when the image is from no file.
        inputs: modality -> SHA-256 of its file.
    """

    heatmap: np.ndarray[Any, np.dtype[np.float32]]
    affine: np.ndarray[Any, np.dtype[np.float64]]
    class_idx: tuple[int, ...]
    logits: np.ndarray[Any, np.dtype[np.float32]]
    header: tuple[float, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)


def read_image(case: Mapping[str, Any], modalities: Sequence[str]) -> MetaTensor:
    """Read modalities of a case, checked, as the channels of one image in the orientation of the files.

    Args:
        case: as listed by :func:`~monai_rrr.data.load_datalist`.
        modalities: names, in the order of the input channels of the network.

    Returns:
        ``MHWD``, float32, with the affine of the first modality; its meta data hold ``case_id``, ``source_header`` and
        ``source_sha256``.

    Raises:
        DataError: When a modality is missing, damaged, or on another grid than the first one.
    """
    case_id = str(case["case_id"])
    images: list[NiftiVolume] = []
    for name in modalities:
        if name not in case["modalities"]:
            message = f"expected {list(modalities)}, got {sorted(case['modalities'])}"
            raise DataError("modality-missing", message, case_id=case_id, field=name)
        path = case["modalities"][name]
        image = read_verified(path, case.get("volumes", {}).get(name), case_id=case_id, field=name)
        first = images[0] if images else image
        if image.array.shape != first.array.shape:
            message = f"expected shape {first.array.shape} as {modalities[0]}, got {image.array.shape}"
            raise DataError("shape-mismatch", message, case_id=case_id, field=name, path=path)
        moved = corner_displacement(image.affine, first.affine, first.array.shape)
        if moved > MAX_DISPLACEMENT:
            message = f"expected the grid of {modalities[0]} within {MAX_DISPLACEMENT} mm, got {moved:.4g} mm apart"
            raise DataError("affine-mismatch", message, case_id=case_id, field=name, path=path)
        images.append(image)
    stack = np.stack([image.array.astype(np.float32) for image in images])
    meta = {
        "case_id": case_id,
        "source_header": tuple(header_geometry(images[0].header).tolist()),
        "source_sha256": {name: image.sha256 for name, image in zip(modalities, images, strict=True)},
    }
    return MetaTensor(torch.from_numpy(stack), affine=torch.from_numpy(images[0].affine.copy()), meta=meta)


def mri_preprocessing(spacing: float | None = None, divisible: int = 32, size: Sequence[int] | None = None) -> Compose:
    """Usual preparation of skull-stripped MRI, invertible: RAS, resampling, crop to the brain, z-score per modality.

    Args:
        spacing: voxel size for the network in mm. None: as it is.
        divisible: the cropped size is a multiple of this, as networks with strides need.
        size: voxels (right, anterior, superior) for networks that take one size only, such as vision transformers:
            padded or cropped around the center of the brain. Evidence in what is cut off can't be seen: choose the
            spacing so that a brain fits.
    """
    fit = [] if size is None else [ResizeWithPadOrCrop(spatial_size=tuple(size))]
    resample = [] if spacing is None else [Spacing(pixdim=(spacing,) * 3, mode="bilinear")]
    return Compose(
        [
            Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            *resample,
            CropForeground(select_fn=_nonzero, k_divisible=1 if fit else divisible),
            *fit,
            NormalizeIntensity(nonzero=True, channel_wise=True),
        ]
    )


def _nonzero(image: Tensor) -> Tensor:
    return image != 0


def explain_network(
    network: nn.Module,
    image: MetaTensor,
    layer: str,
    class_idx: int | Sequence[int] | None = None,
    *,
    score: ClassScore = volume_score,
    reshape: Callable[[Tensor], Tensor] | None = None,
    relu: bool = True,
    normalize: Callable[[Tensor], Tensor] | None = normalize_max,
    preprocessing: Compose | None = None,
    device: str | torch.device = "cpu",
) -> Explanation:
    """Make Grad-CAM heatmaps of one case with any network, classification or segmentation.

    The whole volume passes the network once. Memory and time are those of a training step of it: choose a coarser
    ``spacing`` in the preprocessing when they are too large.

    Args:
        network: any module that maps ``1MHWD`` to logits; explained in evaluation mode. It is moved to ``device``.
        image: ``MHWD`` with an affine, such as of :func:`read_image`.
        layer: name of the layer to explain; :func:`~monai_rrr.attribution.find_layers` lists candidates.
        class_idx: classes to explain. Default: the predicted one; needed for segmentation networks.
        score: what a class of a segmentation network scores, see :mod:`monai_rrr.attribution.score`.
        reshape: lays out features that are not channels first, see :mod:`monai_rrr.attribution.layout`.
        relu: keep evidence for the class only.
        normalize: applied on the grid that the network sees.
        preprocessing: what the network was trained with, a MONAI ``Compose`` of array transforms; spatial ones must be
            invertible. Default: :func:`mri_preprocessing` at the resolution of the image.
        device: where to compute.

    Returns:
        heatmaps on the grid of ``image``, interpolated linearly.

    Raises:
        ValueError: When layer or classes don't fit the network, or the preprocessing can't be undone.
        DataError: When the image is 0 everywhere.
        InferenceError: When logits or heatmaps are not finite, or memory is short.

    Example:
        >>> image = MetaTensor(torch.rand(1, 9, 8, 7), affine=torch.diag(torch.tensor([-1.0, -1.0, 2.0, 1.0])))
        >>> network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
        >>> explain_network(network, image, "0", [0, 2], preprocessing=mri_preprocessing(divisible=4)).heatmap.shape
        (2, 9, 8, 7)
    """
    case_id = image.meta.get("case_id")
    if not bool((image != 0).any()):
        raise DataError("image-empty", "expected an image with values other than 0, got none", case_id=case_id)
    grid = ImageGrid.of(image, mri_preprocessing() if preprocessing is None else preprocessing)
    attribute = GradCAM(layer, relu=relu, score=score, reshape=reshape)
    classes = (class_idx,) if isinstance(class_idx, int) else class_idx
    batch = grid.seen.as_tensor()[None].to(device)
    try:
        heatmap, explained, logits = explain_image(batch, network.to(device), attribute, classes)
    except InferenceError as error:
        raise InferenceError(
            error.code, error.message, case_id=case_id, field=error.field, hint=error.hint
        ) from error.__cause__
    if normalize is not None:
        heatmap = normalize(heatmap)
    return Explanation(
        heatmap=grid.back(heatmap[0]),
        affine=np.asarray(image.affine, dtype=np.float64),
        class_idx=tuple(explained[0].tolist()),
        logits=logits[0].float().cpu().numpy(),
        header=image.meta.get("source_header", ()),
        inputs=image.meta.get("source_sha256", {}),
    )
