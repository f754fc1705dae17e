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

"""Who and why for one case, as JSON: whose habit of outlining the result is like, region by region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_rrr.attribution.tendency_region import annotator_posterior
from monai_rrr.inferers.tendency import RegionTendency, TendencyMaps, explain_regions, tendency_maps
from monai_rrr.networks.nets.right_reasons_net import TellsWhoNet
from monai_rrr.report.tendency_case import explain_why
from monai_rrr.report.tendency_record import NOTE
from monai_rrr.transforms.source_grid import to_source_grid
from monai_rrr.utils.class_map import CLASSES

__all__ = ["tendency_details"]

DISPUTED = 0.2
MOST = 8


def tendency_details(
    network: TellsWhoNet, image: Tensor, probability: Tensor, geometry: Mapping[str, Any]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Return the maps of disagreement and of every annotator's deviation, and who and why.

    Sentences need prototypes that are training patches, which a complete training leaves; without them only shares are
    given.

    Args:
        network: with weights.
        image: ``1MXYZ``, what the network saw.
        probability: ``1 1+R C XYZ``, the consensus and every annotator's version, as they are served.
        geometry: of :class:`~monai_rrr.transforms.WholeVolumed`.

    Returns:
        name -> ``XYZ`` on the voxels of the file; JSON values: ``who`` (annotator -> share), ``regions``, ``note``.
    """
    maps = tendency_maps(network, image, probability=probability)
    stacked = torch.cat([maps.disagreement, maps.deviation[0]])
    moved = to_source_grid(stacked, geometry)
    names = network.annotators
    heatmaps = {"disagreement": moved[0], **{f"deviation_{n}": m for n, m in zip(names, moved[1:], strict=True)}}
    disputed = maps.disagreement[0] > DISPUTED
    volume = abs(float(np.linalg.det(np.asarray(geometry["affine"])[:3, :3])))
    details: dict[str, Any] = {
        "note": NOTE,
        "disputed_ml": round(float(disputed.sum()) * volume / 1000, 3),
        "regions": _regions(network, image, maps, volume),
    }
    if bool(disputed.any()):
        shares = annotator_posterior(maps.probability[0, 1:], maps.label[0], disputed, network.prior_weight[1:])[0]
        details["who"] = _shares(names, shares.tolist())
    return heatmaps, details


def _regions(network: TellsWhoNet, image: Tensor, maps: TendencyMaps, volume: float) -> list[dict[str, Any]]:
    names = network.annotators
    if not bool((network.tendency_bank.source[..., 0] >= 0).any()):
        found = explain_regions(network, maps, threshold=DISPUTED)[1]
        return [_region(one, names, volume) for one in found[:MOST]]
    why = explain_why(network, image, maps, threshold=DISPUTED, most=MOST)[1]
    return [
        {
            **_region(one.found, names, volume),
            "tendency": one.departure.kind,
            "sentence": one.sentence(names, CLASSES),
            "counterfactual": one.counterfactual(names, CLASSES),
        }
        for one in why
    ]


def _region(found: RegionTendency, names: Sequence[str], volume: float) -> dict[str, Any]:
    return {
        "region": found.region,
        "volume_ml": round(found.voxels * volume / 1000, 3),
        "who": _shares(names, found.posterior),
        "most_like": names[found.annotator],
        "label": CLASSES[found.label],
        "label_without": CLASSES[found.label_without],
    }


def _shares(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}
