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

"""All files of who and why as the last step of a bundle's inference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from monai_rrr.inferers.tendency import tendency_maps
from monai_rrr.networks.nets.right_reasons_net import TellsWhoNet
from monai_rrr.report.image_grid import VolumeGrid
from monai_rrr.report.tendency_case import class_names
from monai_rrr.report.tendency_files import RegionChoice, write_maps
from monai_rrr.report.tendency_record import TrainingCases
from monai_rrr.utils.class_map import CLASSES, from_classes
from monai_rrr.utils.conventions import LabelConvention, get_convention
from monai_rrr.utils.enums import MODALITIES
from monai_rrr.utils.nifti_file import affine_geometry
from monai_rrr.utils.provenance import Provenance

__all__ = ["SaveTendencyd"]


class SaveTendencyd(Transform):
    """Write the files of :func:`~monai_rrr.report.write_tendency` for a case of a bundle; all or none.

    Args:
        output_dir: created when missing.
        network: that made the probabilities, unwrapped; it is called once more, for what is not among them.
        convention: label values to write.
        modalities: names of the channels.
        training_cases: see :func:`~monai_rrr.report.write_tendency`; items with a ``geometry`` lie where it says.
        regions: so many are explained at most, the largest ones; 0: none.
        key: probabilities, ``1+R C XYZ``, the consensus first, on the grid of
            :class:`~monai_rrr.transforms.WholeVolumed`; left as they are. ``image``, ``geometry`` and ``case_id`` of
            the sample are read, too.
        provenance: what to record beside the results.

    Raises:
        ValueError: When the classes are not background, NCR, ED and ET, an annotator is called as files are, or a
            training case is not what a prototype says.
        InferenceError: ``heatmap-not-finite``.
    """

    def __init__(
        self,
        output_dir: str,
        network: TellsWhoNet,
        convention: str | LabelConvention,
        modalities: Sequence[str] = MODALITIES,
        training_cases: Sequence[Mapping[str, Any]] | None = None,
        regions: int = 8,
        key: str = "pred",
        provenance: Provenance | None = None,
    ) -> None:
        self.output_dir, self.network, self.key, self.modalities = output_dir, network, key, tuple(modalities)
        self.values = [int(v) for v in from_classes(np.arange(len(CLASSES)), get_convention(convention))]
        self.sources = TrainingCases(training_cases, network.annotators, class_names(network, CLASSES))
        self.choice, self.provenance = RegionChoice(most=regions), provenance or Provenance()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files and return the data."""
        grid = VolumeGrid.of({"image": data["image"], "geometry": data["geometry"]})
        batch = grid.seen.as_tensor()[None].to(self.network.rho.device)
        maps = tendency_maps(self.network, batch, probability=torch.as_tensor(data[self.key])[None].to(batch))
        header = data.get("source_header")
        write_maps(
            self.network,
            grid,
            maps,
            str(data["case_id"]),
            self.output_dir,
            self.modalities,
            self.sources,
            self.values,
            header=affine_geometry(grid.affine) if header is None else header,
            inputs={name: digest for name, digest in data.get("source_sha256", {}).items() if digest},
            choice=self.choice,
            provenance=self.provenance,
        )
        return dict(data)
