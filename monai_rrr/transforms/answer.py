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

"""A label map as the answer to the request of a labeling server."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from monai_rrr.utils.class_map import to_classes
from monai_rrr.utils.conventions import LabelConvention, get_convention

__all__ = ["AnswerLabeld"]


class AnswerLabeld(Transform):
    """Put the label map where MONAI Label expects its answer, and the fields of its request back.

    Ends the postprocessing of a bundle whose preprocessing begins with
    :class:`~monai_rrr.data.CaseOfImaged`. A sample without ``request`` passes as it is. Of any other, ``pred`` becomes
    the label map, ``image_meta_dict`` says where its voxels lie, and what the request held is there again.

    Values are those of the metadata's ``channel_def``, whatever convention the files have: 1 necrotic and non-enhancing
    core, 2 edema, 3 enhancing tumor.

    Args:
        key: label map, ``1XYZ`` in values of ``convention``; or classes, ``1+R XYZ``, the consensus first.
        convention: of the label map. None: the key holds classes.
    """

    def __init__(self, key: str = "label_map", convention: str | LabelConvention | None = None) -> None:
        self.key = key
        self.convention = None if convention is None else get_convention(convention)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the answer."""
        if "request" not in data:
            return dict(data)
        found = data[self.key]
        affine = torch.as_tensor(np.asarray(data["geometry"]["source_affine"], dtype=np.float64))
        label = torch.as_tensor(found).as_subclass(torch.Tensor)[:1]
        if self.convention is not None:
            label = torch.from_numpy(to_classes(label.cpu().numpy(), self.convention))
        where = {"original_affine": affine.numpy(), "spatial_shape": tuple(label.shape[1:])}
        answer = {key: value for key, value in data.items() if key != "request"}
        return {
            **data["request"],
            **answer,
            "pred": MetaTensor(label.to(torch.uint8), affine=affine),
            "image_meta_dict": where,
        }
