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

"""Make a batch for terms that compare an image with a warped view of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ignite import distributed as idist
from torch import Tensor

from monai_rrr.transforms.warp import RandomWarp

__all__ = ["PrepareViews"]

_MOVED = ("image", "brain", "present", "class_label", "slice_label")


@dataclass(frozen=True)
class PrepareViews:
    """``prepare_batch`` that keeps the dictionary and, with a warp, doubles the batch.

    The batch becomes ``N`` images followed by their ``N`` warped views, so that both views and all modalities go
    through the network in one pass. ``warp`` holds the :class:`~monai_rrr.transforms.warp.Warp` between the halves.
    Images, masks and tags move together: slice tags are reversed where the slices are, and what an annotator drew is
    unknown (-1) where the warp brings in nothing.

    Args:
        warp: what to draw from, or ``None`` for one view.

    Raises:
        ValueError: When the batch lacks what a second view needs.

    Example:
        >>> batch = {"image": torch.rand(1, 4, 8, 8, 4), "brain": torch.ones(1, 1, 8, 8, 4),
        ...          "present": torch.ones(1, 4), "class_label": torch.ones(1, 3), "slice_label": torch.ones(1, 3, 4)}
        >>> PrepareViews(RandomWarp())(batch, "cpu", False)["image"].shape
        torch.Size([2, 4, 8, 8, 4])
    """

    warp: RandomWarp | None = None

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """Return the batch on the device; ``iteration`` in ``batchdata`` makes the draw reproducible."""
        batch = {
            key: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for key, value in batchdata.items()
        }
        if self.warp is None:
            return batch
        missing = sorted(set(_MOVED) - set(batch))
        if missing:
            raise ValueError(f"two views need {list(_MOVED)}, got a batch without {missing}")
        image = batch["image"]
        warp = self.warp(image, iteration=int(batch.get("iteration", 0)), rank=idist.get_rank())
        batch["warp"] = warp
        batch["shared"] = {}
        moved = warp(torch.cat([image, batch["brain"].to(image.dtype)], 1))
        batch["image"] = torch.cat([image, moved[:, :-1]])
        batch["brain"] = torch.cat([batch["brain"], moved[:, -1:] > 0.5])
        for key in ("present", "class_label"):
            batch[key] = torch.cat([batch[key], batch[key]])
        batch["slice_label"] = torch.cat([batch["slice_label"], warp.slices(batch["slice_label"])])
        for key in ("label", "evidence_mask"):
            if key in batch:
                mask = batch[key].to(image.dtype)
                batch[key] = torch.cat([mask, warp(mask, "nearest")])
        if "annotations" in batch:
            drawn = batch["annotations"]
            # what comes in at the borders is 0, and must be unknown
            batch["annotations"] = torch.cat([drawn, (warp(drawn.to(image.dtype) + 1, "nearest") - 1).to(drawn.dtype)])
        for key in ("has_mask", "annotated", "annotator_weight"):
            if key in batch:
                batch[key] = torch.cat([batch[key]] * 2)
        return batch
