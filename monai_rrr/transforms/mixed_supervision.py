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

"""What the terms on heatmaps read, from whatever supervision a sample has."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform
from torch import Tensor

from monai_rrr.utils.enums import RRRKeys

__all__ = ["MixedSupervisiond"]


class MixedSupervisiond(Transform):
    """Add ``evidence_mask`` and ``has_mask``, and tags where only masks tell them, so that all samples collate.

    Evidence for a region may lie where the marks of the case allow it, and, if somebody drew the case, where any
    annotator drew the region or left open what is there. A sample with neither has no mask.

    Tags that are not known are read off the masks: a slice is positive where more than half of the annotators of the
    case have the region in it, negative where no annotator can have it, and unknown (NaN) between. Tags that are known
    stay as they are.

    Args:
        regions: tissue classes of each region.
        from_masks: also allow evidence by masks of annotators; ``False`` leaves it to the marks.

    Shape:
        - annotations: ``RHWD`` classes, negative where not known; annotated: ``R``; evidence: ``1HWD``, if there;
          brain: ``1HWD``; class_label: ``K``; slice_label: ``K D``.
        - evidence_mask: ``KHWD`` float32, 0 or 1; has_mask: a boolean scalar; evidence is removed.

    Example:
        >>> drawn = torch.zeros(2, 2, 2, 3).long()
        >>> drawn[:, 0, 0, 0], drawn[0, 0, 0, 1] = 3, 2
        >>> sample = {"annotations": drawn, "annotated": torch.tensor([True, True]),
        ...           "brain": torch.ones(1, 2, 2, 3).bool(), "class_label": torch.full((3,), torch.nan),
        ...           "slice_label": torch.full((3, 3), torch.nan)}
        >>> out = MixedSupervisiond()(sample)
        >>> out["slice_label"].tolist()
        [[1.0, nan, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
        >>> out["evidence_mask"].sum((1, 2, 3)).tolist(), bool(out["has_mask"])
        ([2.0, 1.0, 1.0], True)
    """

    def __init__(self, regions: Sequence[Sequence[int]] = ((1, 2, 3), (1, 3), (3,)), from_masks: bool = True) -> None:
        self.regions, self.from_masks = tuple(tuple(classes) for classes in regions), from_masks

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with what the terms read."""
        out = {key: value for key, value in data.items() if key != "evidence"}
        brain = torch.as_tensor(data[RRRKeys.BRAIN]).bool()
        drawn = torch.as_tensor(data["annotations"]).as_subclass(Tensor)[data["annotated"]]
        mask = torch.ones(len(self.regions), *brain.shape[1:])
        has = "evidence" in data
        if has:
            mask = mask * (torch.as_tensor(data["evidence"]) > 0.5)
        if len(drawn):
            inside = torch.stack([torch.stack([drawn == c for c in classes]).any(0) for classes in self.regions])
            possible = inside | ((drawn < 0) & brain)
            if self.from_masks:
                mask, has = mask * possible.any(1), True
            tags = _tags(inside, possible)
            for key, found in ((RRRKeys.SLICE_LABEL, tags), (RRRKeys.CLASS_LABEL, _any_slice(tags))):
                known = torch.as_tensor(data[key])
                out[key] = torch.where(known.isnan(), found.to(known), known)
        out[RRRKeys.EVIDENCE_MASK] = mask * has
        out[RRRKeys.HAS_MASK] = torch.tensor(has)
        return out


def _tags(inside: Tensor, possible: Tensor) -> Tensor:
    """Slice tags ``K D`` of what annotators drew, ``K R H W D``."""
    votes = inside.any(3).any(2).float().mean(1)
    open_ = possible.any(3).any(2).any(1)
    return torch.where(votes > 0.5, 1.0, torch.where(open_, torch.nan, 0.0))


def _any_slice(tags: Tensor) -> Tensor:
    """Slab tags ``K``: positive with any slice, negative with all, else unknown."""
    positive = (tags > 0.5).any(1)
    return torch.where(positive, 1.0, torch.where((tags < 0.5).all(1), 0.0, torch.nan))
