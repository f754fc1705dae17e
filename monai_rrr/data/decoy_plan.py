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

"""Who carries a marker: patients are split first, then markers are dealt out by class, set by set."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from monai_rrr.data.decoy_marker import MARKERS
from monai_rrr.errors import DataError
from monai_rrr.utils.enums import MODALITIES, REGIONS

__all__ = ["TEST_SETS", "TRAINING", "DecoySettings", "patient_of", "plan_markers", "split_patients"]

TRAINING = "training"
TEST_SETS: tuple[str, ...] = ("iid", "removed", "random", "conflicting")

_TIME_POINT = re.compile(r"^(BraTS-[A-Za-z]+-\d+)-\d+$")


@dataclass(frozen=True)
class DecoySettings:
    r"""What makes a decoy cohort, besides its images.

    .. math:: P(\text{marker} \mid y = 1) = q, \qquad P(\text{marker} \mid y = 0) = 1 - q

    Args:
        marker: one of :data:`~monai_rrr.data.decoy_marker.MARKERS`.
        q: strength of the association in training and in the test set ``iid``, in [0, 1].
        region: a case is of class 1 when it has this region.
        modalities: those that get the marker. Empty: all of a case; for ``"blur"`` and ``"shift"`` the first one that
            all cases have.
        held_out: share of the patients of each class that are for testing, in (0, 1).
        strength: factor of the marker's visible effect.
        seed: of the split, of the assignment and of the markers.

    Raises:
        ValueError: When a value is out of range.
    """

    marker: str = "letter"
    q: float = 0.95
    region: str = "WT"
    modalities: tuple[str, ...] = ()
    held_out: float = 0.33
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.marker not in MARKERS:
            raise ValueError(f"expected a marker of {', '.join(MARKERS)}, got {self.marker!r}")
        if not 0 <= self.q <= 1:
            raise ValueError(f"q must be in [0, 1], got {self.q}")
        if self.region not in REGIONS:
            raise ValueError(f"expected a region of {', '.join(REGIONS)}, got {self.region!r}")
        unknown = [name for name in self.modalities if name not in MODALITIES]
        if unknown:
            raise ValueError(f"expected modalities of {', '.join(MODALITIES)}, got {', '.join(unknown)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be in (0, 1), got {self.held_out}")
        if not self.strength > 0 or not 0 <= self.seed < 2**32:
            raise ValueError(f"expected strength > 0 and a seed of 32 bits, got {self.strength} and {self.seed}")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "modalities": list(self.modalities)}


def patient_of(case_id: str) -> str:
    """Return the patient of a case: BraTS names since 2023 end in a time point; all others are patients themselves.

    Example:
        >>> patient_of("BraTS-GLI-00005-101"), patient_of("BraTS2021_00005")
        ('BraTS-GLI-00005', 'BraTS2021_00005')
    """
    found = _TIME_POINT.match(case_id)
    return found[1] if found else case_id


def split_patients(class_labels: Mapping[str, int], held_out: float, seed: int) -> dict[str, bool]:
    """Say of every case whether it is held out; all cases of a patient go the same way.

    The share is kept within each class (a patient counts as class 1 when one of the cases is), with at least one
    patient per class on either side.

    Args:
        class_labels: case id -> 0 or 1.
        held_out: share of the patients that is held out.
        seed: of the shuffling.

    Raises:
        DataError: ``decoy-classes``, when a class has fewer than two patients.
    """
    patients: dict[str, int] = defaultdict(int)
    for case_id, value in class_labels.items():
        patients[patient_of(case_id)] = max(patients[patient_of(case_id)], value)
    rng, chosen = np.random.RandomState(seed), set()
    for value in (0, 1):
        group = sorted(name for name, found in patients.items() if found == value)
        if len(group) < 2:
            raise DataError(
                "decoy-classes",
                f"expected at least 2 patients of class {value}, one to train and one to test, got {len(group)}",
                hint="class 1 are the cases that have the region: choose one that some cases lack, or add controls",
            )
        count = min(max(1, round(held_out * len(group))), len(group) - 1)
        chosen |= {group[index] for index in rng.permutation(len(group))[:count]}
    return {case_id: patient_of(case_id) in chosen for case_id in class_labels}


def plan_markers(class_labels: Mapping[str, int], settings: DecoySettings) -> dict[str, dict[str, bool]]:
    """Case id -> set -> whether the case carries the marker there: ``training`` alone, or the four test sets.

    Shares are met as exactly as whole cases allow (``round(q * n)`` of the n cases of a class), not drawn one by one,
    so that small cohorts are what they are said to be. ``conflicting`` is the exact opposite of ``iid``.

    Args:
        class_labels: case id -> 0 or 1.
        settings: association, share held out, seed.

    Raises:
        DataError: As :func:`split_patients`.
    """
    held_out = split_patients(class_labels, settings.held_out, settings.seed)
    rng = np.random.RandomState((settings.seed + 1) % 2**32)
    plan: dict[str, dict[str, bool]] = {case_id: {} for case_id in sorted(class_labels)}
    for value in (0, 1):
        share = settings.q if value else 1 - settings.q
        group = [case_id for case_id in plan if class_labels[case_id] == value]
        train, test = ([case_id for case_id in group if held_out[case_id] is part] for part in (False, True))
        for case_id, carries in _deal(train, share, rng).items():
            plan[case_id][TRAINING] = carries
        iid, half = _deal(test, share, rng), _deal(test, 0.5, rng)
        for case_id in test:
            carried = (iid[case_id], False, half[case_id], not iid[case_id])
            plan[case_id] = dict(zip(TEST_SETS, carried, strict=True))
    return plan


def _deal(cases: list[str], share: float, rng: np.random.RandomState) -> dict[str, bool]:
    carriers = {cases[index] for index in rng.permutation(len(cases))[: int(share * len(cases) + 0.5)]}
    return {case_id: case_id in carriers for case_id in cases}
