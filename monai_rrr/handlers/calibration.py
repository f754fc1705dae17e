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

"""Set the operating point of a network from the tags of its training cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor, nn

from monai_rrr.metrics.calibration import Criterion, TagCalibration
from monai_rrr.utils.checks import check_heatmaps

__all__ = ["TagCalibrationHandler"]


class TagCalibrationHandler:
    """When training ends, choose threshold and least area of each class so that slices agree with the training tags.

    Runs the inferer over whole training volumes, gives their heatmaps and slice tags to
    :class:`~monai_rrr.metrics.calibration.TagCalibration`, and writes the result to the network's buffer
    ``operating_point`` (``K 2``: threshold, mm2), which is saved with the weights. No mask is read. With several
    processes the first one computes and the others receive.

    Args:
        network: has ``operating_point``; unwrapped.
        inferer: heatmaps in [0, 1], ``B K H W D``, from an image, the network and ``present``.
        data: whole training volumes: ``image``, ``brain``, ``present``, ``slice_label``.
        spacing: voxel size of these volumes in mm.
        device: where to compute.
        criterion: see :class:`~monai_rrr.metrics.calibration.TagCalibration`.

    Raises:
        InferenceError: When a heatmap is not finite; the operating points then stay as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        inferer: Callable[..., Tensor],
        data: Iterable[Mapping[str, Any]],
        spacing: float | Sequence[float],
        device: str | torch.device = "cpu",
        criterion: Criterion = "f1",
    ) -> None:
        self.network, self.inferer, self.data, self.device = network, inferer, data, torch.device(device)
        self.spacing = (float(spacing),) * 3 if isinstance(spacing, (int, float)) else tuple(spacing)
        self.criterion: Criterion = criterion

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Calibrate."""
        points = cast(Tensor, self.network.operating_point)
        if idist.get_rank() == 0:
            points.copy_(self.calibrate())
        if idist.get_world_size() > 1:
            points.copy_(cast(Tensor, idist.broadcast(points, src=0)))

    def calibrate(self) -> Tensor:
        """Operating points ``K 2`` of the network as it is."""
        found = [calibration.solve(self.criterion) for calibration in self.collect()]
        return torch.tensor([[point.threshold, point.min_area_mm2] for point in found])

    def collect(self) -> list[TagCalibration]:
        """Heatmaps and tags of all volumes, by class; any criterion can be solved on them."""
        classes = len(cast(Tensor, self.network.operating_point))
        calibrations = [TagCalibration() for _ in range(classes)]
        for item in self.data:
            present = item["present"].to(self.device)[None]
            heatmap = self.inferer(item["image"].to(self.device)[None], self.network, present=present)[0].cpu().numpy()
            check_heatmaps(heatmap, case_id=item.get("case_id"))
            for index, calibration in enumerate(calibrations):
                calibration.add(heatmap[index], item["slice_label"][index], item["brain"][0], self.spacing)
        return calibrations
