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

"""Probabilities of the consensus and of every annotator, for a whole brain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from monai_rrr.attribution.trace import record
from monai_rrr.utils.checks import check_heatmaps

__all__ = ["AnnotatorInferer"]


class AnnotatorInferer(Inferer):
    """Segment whole volumes with :class:`~monai_rrr.networks.AnnotatorTendencyNet`, once for each annotator.

    Args:
        flips: axes (0 to 2) of test-time mirroring; all combinations of them are averaged. Empty: none.

    Shape:
        - inputs: ``BMXYZ``, 0 outside the brain; network: with a layer ``annotator_logits``, wrapped or not.
        - output: probabilities ``B 1+R C XYZ``, the consensus first; background for certain outside the brain.

    Raises:
        ValueError: When ``flips`` names no spatial axis.
        InferenceError: ``heatmap-not-finite``.

    Example:
        >>> from monai.networks.nets import UNet
        >>> from monai_rrr.networks import AnnotatorTendencyNet
        >>> backbone = UNet(3, in_channels=4, out_channels=8, channels=(4, 8), strides=(2,))
        >>> network = AnnotatorTendencyNet(["a", "b"], backbone=backbone, features=8, queue=1024)
        >>> AnnotatorInferer()(torch.rand(1, 4, 8, 8, 8), network).shape
        torch.Size([1, 3, 4, 8, 8, 8])
    """

    def __init__(self, flips: Sequence[int] = ()) -> None:
        super().__init__()
        if not set(flips) <= {0, 1, 2}:
            raise ValueError(f"flips must be axes out of 0, 1 and 2, got {list(flips)}")
        axes = sorted({axis + 2 for axis in flips})
        self.mirrored = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return probabilities on the grid of ``inputs``.

        Keywords: ``case_id`` (``B`` names), for errors.
        """
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        probability = torch.stack([self._mirrored(image, network, axes) for axes in self.mirrored]).mean(0)
        for index, case_id in enumerate(kwargs.get("case_id") or [None] * len(image)):
            check_heatmaps(probability[index].flatten(0, 1), case_id=case_id)
        brain = (image != 0).any(1)[:, None, None]
        background = torch.zeros_like(probability)
        background[:, :, 0] = 1
        return torch.where(brain, probability, background)

    def _mirrored(self, image: Tensor, network: Any, axes: tuple[int, ...]) -> Tensor:
        trace = record(network, image.flip(axes), ["annotator_logits"])
        logits = torch.cat([trace.logits[:, None], trace.features["annotator_logits"]], 1)
        return logits.float().softmax(2).flip([axis + 1 for axis in axes])
