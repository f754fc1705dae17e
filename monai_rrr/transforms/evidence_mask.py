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

"""From a voxel mask to a mask of where evidence is allowed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Transform

from monai_rrr.utils.draw import case_draw
from monai_rrr.utils.enums import RRRKeys

__all__ = ["EvidenceMaskd"]


class EvidenceMaskd(Transform):
    """Add ``evidence_mask`` and ``has_mask``, from the label of a share of the cases.

    The last transform of a training pipeline: every sample gets both keys, so that samples with and without a mask
    fit into one batch. Evidence is allowed where the label is above 0. Which cases lose their mask depends on case id
    and seed, not on any order; :func:`monai_rrr.data.keep_labels` gives an exact share, and does not read the others.

    Args:
        channels: of the label: 1, or one per class.
        share: probability that a case keeps its mask.
        seed: of that draw.
        key: of the label; it is removed.
        image_key: gives the spatial shape where there is no label.

    Shape:
        - label: ``CH[WD]``.
        - evidence_mask: ``CH[WD]`` float32, 0 or 1; has_mask: a boolean scalar.

    Raises:
        ValueError: When ``share`` is not in [0, 1], or the label does not fit the image or ``channels``.

    Example:
        >>> sample = {"case_id": "a", "image": torch.zeros(4, 2, 2), "label": torch.tensor([[[0.0, 0.2], [1.0, 0.0]]])}
        >>> out = EvidenceMaskd(channels=1)(sample)
        >>> out["evidence_mask"].tolist(), bool(out["has_mask"]), "label" in out
        ([[[0.0, 1.0], [1.0, 0.0]]], True, False)
    """

    def __init__(
        self,
        channels: int,
        share: float = 1.0,
        seed: int = 0,
        key: Hashable = RRRKeys.LABEL,
        image_key: Hashable = RRRKeys.IMAGE,
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must be in [0, 1], got {share}")
        self.channels, self.share, self.seed, self.key, self.image_key = channels, share, seed, key, image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with both keys."""
        out = {key: value for key, value in data.items() if key != self.key}
        shape = (self.channels, *data[self.image_key].shape[1:])
        has = self.key in data and case_draw(str(data[RRRKeys.CASE_ID]), self.seed) < self.share
        mask = torch.zeros(shape)
        if has:
            label = torch.as_tensor(data[self.key]).as_subclass(torch.Tensor)
            if tuple(label.shape) != shape:
                raise ValueError(f"expected a label of shape {shape}, got {tuple(label.shape)}")
            mask = (label > 0).float()
        out[RRRKeys.EVIDENCE_MASK] = mask
        out[RRRKeys.HAS_MASK] = torch.tensor(has)
        return out
