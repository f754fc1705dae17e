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

"""What a bundle says about one case, on the voxels of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_rrr.errors import ConfigError

__all__ = ["LABELS", "Prediction", "to_levels"]

LABELS = {"necrotic and non-enhancing core": 1, "edema": 2, "enhancing tumor": 3}
"""Values of every label map that is served, and of those that are handed in: convention ``brats2023``."""

MAX_LEVELS = 255


@dataclass(frozen=True)
class Prediction:
    """Label map, heatmaps and who and why, as a viewer needs them.

    Args:
        case_id: the case.
        label: ``XYZ`` uint8, values of :data:`LABELS`.
        heatmaps: name -> ``XYZ`` float32, larger is more evidence; the first is the one to show.
        annotators: pseudonym -> ``XYZ`` uint8, that annotator's version of the label map.
        affine: 4x4, voxel to mm in RAS.
        header: of :func:`~monai_rrr.utils.nifti_file.header_geometry`.
        details: JSON values: class scores, who and why.
    """

    case_id: str
    label: NDArray[np.uint8]
    heatmaps: Mapping[str, NDArray[np.float32]]
    annotators: Mapping[str, NDArray[np.uint8]]
    affine: NDArray[np.float64]
    header: NDArray[np.float64]
    details: Mapping[str, Any] = field(default_factory=dict)

    def heatmap(self, name: str | None = None) -> NDArray[np.float32]:
        """Return a heatmap; by default the first.

        Raises:
            ConfigError: ``request``, when there is none of this name.
        """
        name = next(iter(self.heatmaps), "") if name is None else name
        if name not in self.heatmaps:
            raise _unknown("heatmap", name, self.heatmaps)
        return self.heatmaps[name]

    def mask(self, annotator: str | None = None) -> NDArray[np.uint8]:
        """Return the label map, or one annotator's version of it.

        Raises:
            ConfigError: ``request``, when there is no such annotator.
        """
        if annotator in (None, "consensus"):
            return self.label
        if annotator not in self.annotators:
            raise _unknown("annotator", annotator, ("consensus", *self.annotators))
        return self.annotators[str(annotator)]

    def summary(self) -> dict[str, Any]:
        """Return JSON values: names of what can be asked for, volumes in ml, and the details."""
        ml = abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000
        versions = {"consensus": self.label, **self.annotators} if self.annotators else {"label": self.label}
        volumes = {
            who: {name: round(float((mask == value).sum()) * ml, 3) for name, value in LABELS.items()}
            for who, mask in versions.items()
        }
        return {
            "case_id": self.case_id,
            "heatmaps": list(self.heatmaps),
            "annotators": list(self.annotators),
            "volumes_ml": volumes,
            **self.details,
        }


def to_levels(heatmap: NDArray[np.float32], levels: int) -> NDArray[np.uint8]:
    """Turn a heatmap into levels that a viewer of label maps can show: k from k / levels on, 0 where there is little.

    A map in [0, 1] keeps its scale, so that cases can be compared; a larger one is divided by its maximum. Evidence
    against the class (negative values) is level 0.

    Raises:
        ConfigError: ``request``, when there are not 1 to 255 levels.

    Example:
        >>> to_levels(np.array([-1.0, 0.1, 0.2, 0.99, 1.0], np.float32), 5).tolist()
        [0, 0, 1, 4, 5]
    """
    if not 1 <= levels <= MAX_LEVELS:
        raise ConfigError("request", f"expected 1 to {MAX_LEVELS} levels, got {levels}", field="levels")
    top = max(float(heatmap.max(initial=0.0)), 1.0)
    # a little more, as 0.2 * 5 can be less than 1 in float32
    scaled = np.clip(heatmap, 0, None).astype(np.float64) / top * levels
    return np.asarray(np.floor(scaled + 1e-6).clip(0, levels), dtype=np.uint8)


def _unknown(what: str, name: Any, known: Any) -> ConfigError:
    listed = ", ".join(known) or "none"
    return ConfigError("request", f"expected {what} to be one of {listed}, got {name!r}", field=what)
