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

"""Who draws which case: teams of simulated annotators on a ladder of difficulty, under pseudonyms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from monai_rrr.data.annotations import annotator_groups
from monai_rrr.data.annotator_rules import KINDS, AnnotatorSettings
from monai_rrr.data.decoy_plan import patient_of
from monai_rrr.errors import DataError
from monai_rrr.utils.draw import case_draw

__all__ = ["ADAPTATION", "LEVELS", "TEST", "TRAINING", "CasePlan", "Member", "TeamSettings", "make_team", "plan_cases"]

TRAINING, ADAPTATION, TEST = "training", "adaptation", "test"
LEVELS = {
    "L1": "every case by all, with constant habits",
    "L2": "as L1, but who draws too large does so where FLAIR has no edge",
    "L3": "as L1, but one to three per case, biased by site",
    "L4": "as L1, with a copy of one annotator and one who leans on another",
    "L5": "as L1, but one annotator is unseen in training and has ten other cases",
}
_MOST_PER_CASE = 3
_HOME_BIAS = 4.0


@dataclass(frozen=True)
class Member:
    """One annotator of a team.

    Args:
        kind: one of the six of :data:`~monai_rrr.data.annotator_rules.KINDS`.
        settings: habits.
        leans_on: kind whose hand this one follows; empty: nobody's.
        share: how much, in [0, 1]; 1 draws the same masks.
        home: site where this one draws most, from 0.
    """

    kind: str
    settings: AnnotatorSettings
    leans_on: str = ""
    share: float = 0.0
    home: int = 0

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Member:
        """Make a member from the fields as JSON has them."""
        values = dict(fields)
        return cls(**{**values, "settings": AnnotatorSettings(**values["settings"])})  # type: ignore[arg-type]


@dataclass(frozen=True)
class TeamSettings:
    """What makes a multi-annotator cohort, besides its cases.

    Args:
        level: rung of the ladder, one of :data:`LEVELS`.
        expert: whether an annotator without habits is in the team. Without one, no mask is the truth.
        held_out: share of the patients that is for testing, where all annotators draw every case; in [0, 1).
        seed: of the split, the pseudonyms, who draws what, and of everything that is drawn.
        small_mm3: components below this volume are small; 150 for gliomas, 50 for metastases.
        sites: number of sites, for L3.
        unseen: kind of the annotator who is new, for L5.
        adaptation: cases that the new annotator draws, for L5; use the first 3, 5 or 10.

    Raises:
        ValueError: When a value is out of range.
    """

    level: str = "L1"
    expert: bool = True
    held_out: float = 0.33
    seed: int = 0
    small_mm3: float = 150.0
    sites: int = 3
    unseen: str = "under"
    adaptation: int = 10

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"expected a level of {', '.join(LEVELS)}, got {self.level!r}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {self.held_out}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"expected a seed of 32 bits, got {self.seed}")
        if self.unseen not in KINDS:
            raise ValueError(f"unseen expected one of {', '.join(KINDS)}, got {self.unseen!r}")
        if min(self.sites, self.adaptation) < 1 or not self.small_mm3 > 0:
            raise ValueError("sites, adaptation and small_mm3 must be positive")


@dataclass(frozen=True)
class CasePlan:
    """Who draws a case, and what for.

    Args:
        section: ``"training"``, ``"adaptation"`` or ``"test"``.
        site: site of the case, from 0.
        annotators: ids of those who draw it.
    """

    section: str
    site: int
    annotators: list[str] = field(default_factory=list)


def make_team(settings: TeamSettings) -> dict[str, Member]:
    """Return the annotators of a level by pseudonym: ``a1``, ``a2`` and so on, in an order that tells nothing."""
    members = [
        Member(kind, replace(habit, small_mm3=settings.small_mm3))
        for kind, habit in KINDS.items()
        if settings.expert or kind != "expert"
    ]
    if settings.level == "L2":
        wide = AnnotatorSettings(blur_mm=3.0, small_mm3=settings.small_mm3)
        members = [replace(one, settings=wide) if one.kind == "over" else one for one in members]
    if settings.level == "L4":
        copied = next(one for one in members if one.kind == "over")
        leaning = next(one for one in members if one.kind == "under")
        members += [replace(copied, leans_on="over", share=1.0), replace(leaning, leans_on="under", share=0.8)]
    order = np.random.RandomState(settings.seed).permutation(len(members))
    homes = np.random.RandomState((settings.seed + 1) % 2**32).permutation(len(members)) % settings.sites
    return {
        f"a{place + 1}": replace(members[index], home=int(homes[place])) for place, index in enumerate(order.tolist())
    }


def plan_cases(case_ids: Sequence[str], team: Mapping[str, Member], settings: TeamSettings) -> dict[str, CasePlan]:
    """Split patients first, then say who draws each case.

    Where one to three annotators draw a case (L3), those at home at its site are four times as likely; afterwards
    annotators who would share no case with others, not even through others, get one more case.

    Args:
        case_ids: ids of the cases.
        team: annotators by pseudonym.
        settings: level, share held out, seed.

    Raises:
        DataError: ``annotators-cases``, when there are too few patients for the sections.
    """
    sections = _sections(case_ids, settings)
    names = list(team)
    new = [name for name in names if settings.level == "L5" and team[name].kind == settings.unseen]
    plans = {}
    for case_id in sorted(case_ids):
        section, site = sections[case_id], int(case_draw(case_id, settings.seed) * settings.sites)
        chosen = new if section == ADAPTATION else names if section == TEST else [n for n in names if n not in new]
        if settings.level == "L3" and section == TRAINING:
            chosen = _some(case_id, site, team, settings)
        plans[case_id] = CasePlan(section, site, sorted(chosen))
    if settings.level == "L3":
        _link({case_id: plan.annotators for case_id, plan in plans.items() if plan.section == TRAINING}, names)
    return plans


def _sections(case_ids: Sequence[str], settings: TeamSettings) -> dict[str, str]:
    patients = sorted({patient_of(case_id) for case_id in case_ids})
    extra = settings.adaptation if settings.level == "L5" else 0
    tested = max(1, round(settings.held_out * len(patients))) if settings.held_out else 0
    if tested + extra >= len(patients):
        message = f"expected more than {tested + extra} patients, {tested} to test and {extra} to adapt to, got "
        raise DataError("annotators-cases", f"{message}{len(patients)}", hint="give more cases, or hold out less")
    order = np.random.RandomState(settings.seed).permutation(len(patients)).tolist()
    place = {patients[index]: rank for rank, index in enumerate(order)}
    names = {}
    for case_id in case_ids:
        rank = place[patient_of(case_id)]
        names[case_id] = TEST if rank < tested else ADAPTATION if rank < tested + extra else TRAINING
    return names


def _some(case_id: str, site: int, team: Mapping[str, Member], settings: TeamSettings) -> list[str]:
    rng = np.random.RandomState(int(case_draw(case_id, settings.seed + 2) * 2**32))
    bias = np.array([_HOME_BIAS if member.home == site else 1.0 for member in team.values()])
    count = int(rng.randint(1, min(_MOST_PER_CASE, len(team)) + 1))
    return [str(name) for name in rng.choice(list(team), count, replace=False, p=bias / bias.sum())]


def _link(drawn: Mapping[str, list[str]], names: Sequence[str]) -> None:
    """Give an annotator of every separate group one more case, the one with the fewest annotators of the first group.

    The lists in ``drawn`` are changed.
    """
    busy = {name for found in drawn.values() for name in found}
    groups = annotator_groups(drawn) + [[name] for name in names if name not in busy]
    for group in groups[1:]:
        place = min((case_id for case_id in drawn if set(drawn[case_id]) & set(groups[0])), key=lambda c: len(drawn[c]))
        drawn[place].append(group[0])
        drawn[place].sort()
        groups[0] += group
