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

"""Weights that change during training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import isfinite

__all__ = ["Alternation", "Ramp"]


@dataclass(frozen=True)
class Ramp:
    r"""Weight that rises linearly from 0 to its end value between two moments of training.

    .. math:: w(t) = w_{end} \cdot \mathrm{clip}((t - start) / (stop - start), 0, 1)

    Args:
        end_value: weight from ``stop`` on, at least 0.
        start: share of the training, in [0, 1], up to which the weight is 0.
        stop: share of the training, in [0, 1], from which it is ``end_value``. Equal to ``start``: a step.

    Raises:
        ValueError: When ``end_value`` is negative or not finite, or not 0 <= start <= stop <= 1.

    Example:
        >>> ramp = Ramp(2.0, start=0.25, stop=0.75)
        >>> ramp(0.0), ramp(0.5), ramp(1.0)
        (0.0, 1.0, 2.0)
    """

    end_value: float
    start: float = 0.0
    stop: float = 0.4

    def __post_init__(self) -> None:
        if not isfinite(self.end_value) or self.end_value < 0:
            raise ValueError(f"end_value must be finite and at least 0, got {self.end_value}")
        if not 0 <= self.start <= self.stop <= 1:
            raise ValueError(f"expected 0 <= start <= stop <= 1, got start {self.start} and stop {self.stop}")

    def __call__(self, progress: float) -> float:
        """Return the weight at a share of the training in [0, 1]."""
        if self.start == self.stop:
            return self.end_value if progress >= self.stop else 0.0
        return self.end_value * min(max((progress - self.start) / (self.stop - self.start), 0.0), 1.0)


@dataclass(frozen=True)
class Alternation:
    r"""Weight that is on or off, drawn for each step: two terms with opposite ``turn`` take turns.

    .. math:: p = \alpha N_s / (\alpha N_s + N_u)

    is the probability of a supervised step. The draw is a pure function of ``seed`` and the progress of training, so
    that exactly one of the two is on, also in a resumed run and in every process.

    Args:
        turn: ``"supervised"`` (on with probability ``p``) or ``"unsupervised"`` (on otherwise).
        supervised: ``N_s``, number of supervised samples.
        unsupervised: ``N_u``, number of unsupervised ones.
        alpha: factor of the supervised ones.
        end_value: weight when on.
        seed: of the draw; the same for both terms.

    Raises:
        ValueError: When a number is negative, all are 0, or ``turn`` is unknown.

    Reference:
        A. Mirzazadeh et al., ATCON, WACV 2023, the mode "alternating" as released.

    Example:
        >>> one, other = Alternation("supervised", 3, 1), Alternation("unsupervised", 3, 1)
        >>> one.probability, one(0.5) + other(0.5)
        (0.75, 1.0)
    """

    turn: str
    supervised: int
    unsupervised: int
    alpha: float = 1.0
    end_value: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.turn not in ("supervised", "unsupervised"):
            raise ValueError(f"turn must be supervised or unsupervised, got {self.turn!r}")
        numbers = (self.supervised, self.unsupervised, self.alpha, self.end_value)
        if min(numbers) < 0 or not all(isfinite(n) for n in numbers):
            raise ValueError(f"numbers and weights must be finite and at least 0, got {numbers}")
        if self.alpha * self.supervised + self.unsupervised == 0:
            raise ValueError("expected supervised or unsupervised samples, got none")

    @property
    def probability(self) -> float:
        """Probability of a supervised step."""
        return self.alpha * self.supervised / (self.alpha * self.supervised + self.unsupervised)

    def __call__(self, progress: float) -> float:
        """Return the weight at a share of the training in [0, 1]."""
        supervised = random.Random(f"{self.seed}:{progress!r}").random() < self.probability
        return self.end_value if supervised == (self.turn == "supervised") else 0.0
