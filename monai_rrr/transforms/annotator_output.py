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

"""From probabilities of several annotators to their masks in the geometry of the input files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from numpy.typing import NDArray

from monai_rrr.transforms.source_grid import to_source_grid
from monai_rrr.utils.checks import check_heatmaps
from monai_rrr.utils.class_map import from_classes
from monai_rrr.utils.conventions import LabelConvention, get_convention

__all__ = ["AnnotatorClassesd", "ConsensusToLabeld"]


class AnnotatorClassesd(Transform):
    """Replace probabilities by the most likely class, on the voxels, axes and affine of the case's own files.

    Probabilities are interpolated, not classes, so that contours are as smooth as the network made them.

    Args:
        key: probabilities, the consensus first; replaced.
        kept: where they go, as they are.

    Shape:
        - before: ``1+R C XYZ`` on the grid of :class:`~monai_rrr.transforms.whole_volume.WholeVolumed`, whose
          ``geometry`` and ``case_id`` are read.
        - after: ``1+R X Y Z`` uint8 of the source file, a ``MetaTensor``: 0 background, 1 NCR, 2 ED, 3 ET.

    Raises:
        InferenceError: ``heatmap-not-finite``.
    """

    def __init__(self, key: str = "pred", kept: str = "probability") -> None:
        self.key, self.kept = key, kept

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the classes."""
        case_id, geometry = str(data["case_id"]), data["geometry"]
        probability = torch.as_tensor(data[self.key])
        check_heatmaps(probability.flatten(0, 1), case_id=case_id)
        classes = np.stack([_most_probable(to_source_grid(one, geometry)) for one in probability])
        affine = torch.as_tensor(np.asarray(geometry["source_affine"], dtype=np.float64))
        return {**data, self.key: MetaTensor(torch.from_numpy(classes), affine=affine), self.kept: probability}


def _most_probable(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """``C XYZ`` -> ``XYZ``: the class, the first among equals, a third of the time that argmax takes over this axis."""
    classes, highest = np.zeros(probability.shape[1:], np.uint8), probability[0].copy()
    for index, one in enumerate(probability[1:], start=1):
        np.putmask(classes, one > highest, index)
        np.maximum(highest, one, out=highest)
    return classes


class ConsensusToLabeld(Transform):
    """Add the label map of the consensus, as :class:`~monai_rrr.transforms.SaveHeatmapsd` takes it.

    Args:
        convention: label values.
        key: classes, ``1+R X Y Z``, of :class:`AnnotatorClassesd`.
        output_key: where the label map goes, ``1 X Y Z`` uint8.
    """

    def __init__(self, convention: str | LabelConvention, key: str = "pred", output_key: str = "label_map") -> None:
        self.convention, self.key, self.output_key = get_convention(convention), key, output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the label map."""
        classes = data[self.key]
        label = torch.from_numpy(from_classes(classes.as_tensor()[0].cpu().numpy(), self.convention))
        return {**data, self.output_key: MetaTensor(label[None], meta=dict(classes.meta))}
