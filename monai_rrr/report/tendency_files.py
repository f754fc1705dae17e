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

"""Write what the annotator-tendency network says about a case: outlines, maps of who and why, pictures."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from monai_rrr.errors import DataError
from monai_rrr.inferers.tendency import TendencyMaps, tendency_maps
from monai_rrr.networks.nets.right_reasons_net import TellsWhoNet
from monai_rrr.report.explain import mri_preprocessing
from monai_rrr.report.image_grid import ImageGrid, SourceGrid
from monai_rrr.report.pictures import render, style
from monai_rrr.report.tendency_case import class_names, explain_why
from monai_rrr.report.tendency_page import why_page
from monai_rrr.report.tendency_record import TrainingCases, why_picture, why_record
from monai_rrr.utils.checks import check_heatmaps
from monai_rrr.utils.files import safe_name
from monai_rrr.utils.nifti_file import affine_geometry, nifti_bytes
from monai_rrr.utils.provenance import Provenance, write_results

__all__ = ["RESERVED", "RegionChoice", "write_maps", "write_tendency"]

RESERVED = ("consensus", "mixture")
"""Names that no annotator can have, as files have them."""


@dataclass(frozen=True)
class RegionChoice:
    """Which regions of disagreement are explained.

    Args:
        threshold: total variation between annotators from which on they disagree.
        least: voxels of a region; smaller ones are not explained.
        most: regions, the largest ones; at most 255.
        count: prototypes of each.

    Raises:
        ValueError: When a file can't number so many regions.
    """

    threshold: float = 0.2
    least: int = 8
    most: int = 8
    count: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.most <= 255:
            raise ValueError(f"expected 0 to 255 regions, got {self.most}")


def write_tendency(
    network: TellsWhoNet,
    image: MetaTensor,
    case_id: str,
    out: str | Path,
    modalities: Sequence[str],
    training_cases: Sequence[Mapping[str, Any]] | None,
    *,
    preprocessing: Compose | None = None,
    names: Sequence[str] | None = None,
    values: Sequence[int] | None = None,
    choice: RegionChoice | None = None,
    provenance: Provenance | None = None,
    device: str | torch.device = "cpu",
) -> list[Path]:
    """Write all maps of one case, and ``why.json``, ``why_<region>.png`` and ``why.html``; all or none.

    In ``<out>/<case>``, with names that begin with the case's. ``why.html`` holds the pictures and needs nothing else.
    NIfTI files lie where the image lies, for every reader. uint8: ``seg_<annotator>``, ``seg_consensus``,
    ``seg_mixture`` (the label that ``who`` is about), ``who`` (0: shared, then annotators in the order of the
    network), ``disagreement_region`` (numbers as in ``why.json``). float32: ``prob_mean`` (4D, a class each; mean of
    the annotators weighted by their ``rho``), ``who_prob`` (4D, sums to 1), ``tendency_<annotator>`` (log-odds of
    foreground against the consensus: + draws more, - less), ``disagreement_entropy`` (of ``prob_mean``) and
    ``disagreement_js`` (the part of it that is between annotators), both in bits. Outside of what the network saw
    everything is background that all share.

    Args:
        network: with prototypes that are training patches; moved to ``device``.
        image: ``MHWD`` with an affine, such as of :func:`~monai_rrr.report.read_image`.
        case_id: gives the names.
        out: folder, made when missing.
        modalities: names of the channels.
        training_cases: as :class:`~monai_rrr.handlers.PrototypeUpdate` read them, in its order: ``image`` ``MDHW``,
            ``annotations`` ``RDHW`` and perhaps ``annotated``, ``consensus`` ``CDHW``, ``case_id``. Only those that
            are shown are read. None: without their pictures, and with numbers in place of their ids.
        preprocessing: what the network was trained with; spatial transforms must be invertible. Default:
            :func:`~monai_rrr.report.mri_preprocessing`.
        names: of the classes.
        values: of the classes in the ``seg`` files, such as ``(0, 1, 2, 4)``. Default: the class numbers.
        choice: of the regions that are explained.
        provenance: what the network is.
        device: where to compute.

    Returns:
        The files, the record last.

    Raises:
        ValueError: When an argument does not fit, no prototype is a training patch, or a source is not there.
        DataError: ``image-empty``.
        InferenceError: ``heatmap-not-finite``.
    """
    labels = class_names(network, names)
    numbers = tuple(range(len(labels))) if values is None else tuple(values)
    if len(numbers) != len(labels) or len(modalities) != len(image):
        raise ValueError(
            f"expected {len(labels)} values and {len(image)} modalities, got {numbers} and {list(modalities)}"
        )
    if not bool((network.tendency_bank.source[..., 0] >= 0).any()):
        raise ValueError("expected prototypes that are training patches, got none: PrototypeUpdate.push makes them")
    if not bool((image != 0).any()):
        raise DataError("image-empty", "expected an image with values other than 0, got none", case_id=case_id)
    grid = ImageGrid.of(image, mri_preprocessing() if preprocessing is None else preprocessing)
    maps = tendency_maps(network.to(device), grid.seen.as_tensor()[None].to(device))
    return write_maps(
        network,
        grid,
        maps,
        case_id,
        out,
        modalities,
        TrainingCases(training_cases, network.annotators, labels),
        numbers,
        header=image.meta.get("source_header") or affine_geometry(image.affine),
        inputs=image.meta.get("source_sha256", {}),
        choice=choice,
        provenance=provenance,
    )


def write_maps(
    network: TellsWhoNet,
    grid: SourceGrid,
    maps: TendencyMaps,
    case_id: str,
    out: str | Path,
    modalities: Sequence[str],
    sources: TrainingCases,
    values: Sequence[int],
    *,
    header: ArrayLike,
    inputs: Mapping[str, str],
    choice: RegionChoice | None = None,
    provenance: Provenance | None = None,
) -> list[Path]:
    """Write the files of :func:`write_tendency` from maps that are there; all or none.

    Args:
        network: that made the maps.
        grid: what it saw, and where that lies.
        maps: of the case.
        case_id: gives the names.
        out: folder, made when missing.
        modalities: names of the channels.
        sources: training cases, and the names of annotators and classes.
        values: of the classes in the ``seg`` files.
        header: geometry of the image's file, see :func:`~monai_rrr.utils.nifti_file.header_geometry`.
        inputs: modality -> SHA-256 of its file.
        choice: of the regions that are explained.
        provenance: what the network is.

    Returns:
        The files, the record last.

    Raises:
        ValueError: When an annotator has a name that files have, or a source is not there.
        InferenceError: ``heatmap-not-finite``.
    """
    if set(RESERVED) & set(network.annotators):
        raise ValueError(f"annotators can't be called {RESERVED}, got {network.annotators}")
    chosen = choice or RegionChoice()
    check_heatmaps(maps.tendency[0].cpu().numpy(), case_id=case_id, regions=network.annotators)
    batch = grid.seen.as_tensor()[None].to(maps.label.device)
    regions, why = explain_why(network, batch, maps, chosen.threshold, chosen.least, chosen.most, chosen.count)
    arrays = _arrays(network, maps, regions, grid, np.asarray(values, dtype=np.uint8))
    contents = {f"_{name}.nii.gz": nifti_bytes(array, header) for name, array in arrays.items()}
    record = why_record(network, case_id, grid, maps, why, sources, chosen.threshold)
    contents["_why.json"] = (json.dumps(record, indent=2) + "\n").encode()
    with style():
        pictures = {
            one.found.region: render(why_picture(one, case_id, grid.seen, maps, sources, modalities), "png", 110)
            for one in why
        }
    contents |= {f"_why_{region}.png": picture for region, picture in pictures.items()}
    contents["_why.html"] = why_page(record, pictures).encode("utf-8")
    stem = safe_name(case_id)
    folder = Path(out) / stem
    written = write_results(folder, stem, contents, provenance or Provenance(), inputs)
    for stale in set(folder.glob(f"{glob.escape(stem)}_why_*.png")) - set(written):
        stale.unlink()
    return written


def _arrays(
    network: TellsWhoNet, maps: TendencyMaps, regions: Tensor, grid: SourceGrid, values: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """All maps on the grid of the image, by name; one annotator after the other, as the volumes are large."""
    outside = 1 - grid.back(torch.ones(1, *regions.shape))[0]
    arrays: dict[str, NDArray[Any]] = {}

    def probability(values: Tensor) -> NDArray[Any]:
        found = grid.back(values)
        found[0] += outside
        return found

    def segmentation(values_of: Tensor) -> NDArray[Any]:
        return np.asarray(values[probability(values_of).argmax(0)])

    for r, name in enumerate(map(safe_name, network.annotators)):
        arrays[f"seg_{name}"] = segmentation(maps.probability[0, 1 + r])
        arrays[f"tendency_{name}"] = grid.back(maps.tendency[0, r : r + 1])[0]
    arrays["seg_consensus"] = segmentation(maps.probability[0, 0])
    arrays["seg_mixture"] = segmentation(maps.mixed[0])
    annotators, rho = maps.probability[0, 1:], network.rho
    mean = torch.einsum("r,rcdhw->cdhw", rho, annotators)
    arrays["prob_mean"] = np.moveaxis(probability(mean), 0, -1)
    who = probability(maps.who[0])
    arrays["who"] = who.argmax(0).astype(np.uint8)
    arrays["who_prob"] = np.moveaxis(who, 0, -1)
    entropy = _bits(mean)
    own = torch.stack([_bits(p) for p in annotators])
    js = (entropy - torch.einsum("r,rdhw->dhw", rho, own)).clamp(min=0)
    arrays["disagreement_entropy"], arrays["disagreement_js"] = grid.back(torch.stack([entropy, js]))
    arrays["disagreement_region"] = grid.back(regions[None], nearest=True)[0].round().astype(np.uint8)
    return arrays


def _bits(probability: Tensor) -> Tensor:
    """Entropy of ``C...`` in bits."""
    nats: Tensor = torch.special.entr(probability).sum(0)
    return nats / math.log(2)
