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

"""Label conventions as data: which voxel value means which tissue, and which tissues make up a region."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_rrr.errors import ConfigError, DataError

__all__ = ["CONVENTIONS", "INTEGER_TOLERANCE", "LabelConvention", "get_convention", "round_labels"]

INTEGER_TOLERANCE = 1e-3
MAX_LISTED = 8


@dataclass(frozen=True)
class LabelConvention:
    """The voxel value of each tissue class; 0 is background everywhere.

    Args:
        name: name of the convention.
        ncr: necrotic and non-enhancing tumor core.
        ed: edema.
        et: enhancing tumor.

    Example:
        >>> get_convention("brats2018").regions["TC"]
        (1, 4)
    """

    name: str
    ncr: int
    ed: int
    et: int

    @property
    def values(self) -> frozenset[int]:
        """All legal voxel values, background included."""
        return frozenset((0, self.ncr, self.ed, self.et))

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """Voxel values of each nested region, in the order WT, TC, ET."""
        return {"WT": (self.ncr, self.ed, self.et), "TC": (self.ncr, self.et), "ET": (self.et,)}

    def check_values(
        self,
        found: Collection[int] | Mapping[int, int],
        *,
        case_id: str | None = None,
        path: str | Path | None = None,
    ) -> None:
        """Refuse voxel values that this convention does not have.

        Args:
            found: the values found; when it maps value to voxel count, the counts are reported too.
            case_id: case to name in the error.
            path: file to name in the error.

        Raises:
            DataError: ``label-values``, with the found and the legal set and the conventions that would fit.
        """
        strays = sorted(set(found) - self.values)
        if not strays:
            return
        counts = found if isinstance(found, Mapping) else {}
        named = ", ".join(f"{v} ({counts[v]} voxels)" if v in counts else str(v) for v in strays[:MAX_LISTED])
        listed = f"{sorted(found)}" if len(found) <= MAX_LISTED else f"{len(found)} different values"
        fits = [name for name, other in CONVENTIONS.items() if set(found) <= other.values]
        hint = (
            f"these values fit {' or '.join(fits)}; give the label convention of your data"
            if fits
            else f"no known convention has these values; known are {_describe()}"
        )
        raise DataError(
            "label-values",
            f"expected label values {sorted(self.values)} of convention {self.name!r}, got {listed}; "
            f"not declared: {named}",
            case_id=case_id,
            field="label",
            path=path,
            hint=hint,
        )


CONVENTIONS: dict[str, LabelConvention] = {
    "brats2018": LabelConvention("brats2018", ncr=1, ed=2, et=4),
    "brats2023": LabelConvention("brats2023", ncr=1, ed=2, et=3),
    "msd": LabelConvention("msd", ncr=2, ed=1, et=3),
}


def get_convention(name: str | LabelConvention | None) -> LabelConvention:
    """Look a convention up by name. There is no default: the values of a file can't tell all conventions apart.

    Args:
        name: ``"brats2018"`` (BraTS 2018-2022), ``"brats2023"`` (2023 and later), ``"msd"`` (Task01), or a convention.

    Raises:
        ConfigError: ``label-convention``, when the name is missing or unknown.
    """
    if isinstance(name, LabelConvention):
        return name
    if not isinstance(name, str) or name not in CONVENTIONS:
        got = "none" if name is None else repr(name)
        raise ConfigError(
            "label-convention",
            f"expected a label convention out of {', '.join(CONVENTIONS)}, got {got}",
            field="label_convention",
            hint=f"choose the one of your data: {_describe()}",
        )
    return CONVENTIONS[name]


def round_labels(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round label values that are stored as floats; integers are returned as they are.

    Raises:
        DataError: ``label-fractional``, when a value is more than 1e-3 away from an integer, or not finite.

    Example:
        >>> round_labels(np.array([0.0, 2.9999])).tolist()
        [0.0, 3.0]
    """
    if values.dtype.kind != "f":
        return values
    rounded = np.round(values)
    with np.errstate(invalid="ignore"):
        fractional = values[~(np.abs(values - rounded) <= INTEGER_TOLERANCE)]
    if fractional.size:
        raise DataError(
            "label-fractional",
            f"expected integer label values, got {fractional.size} fractional voxels such as {fractional[0]:g}",
            field="label",
            hint="resample labels by nearest neighbor",
        )
    return rounded


def _describe() -> str:
    return "; ".join(f"{c.name} ({c.ncr} NCR, {c.ed} ED, {c.et} ET)" for c in CONVENTIONS.values())
