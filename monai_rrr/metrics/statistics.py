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

"""Bootstrap intervals whose unit is the case: of a mean, and of a paired difference between two methods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap

__all__ = ["Interval", "bootstrap_mean", "paired_difference"]


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval.

    Args:
        mean: mean over cases.
        low: lower end.
        high: upper end.
        cases: number of cases it rests on.
    """

    mean: float
    low: float
    high: float
    cases: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(values: ArrayLike, n_boot: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean over cases with a bootstrap interval (bias-corrected and accelerated, resampling cases).

    With several seeds (training repeats) per case the values are averaged over seeds first: cases are the population
    that a clinic asks about, and repeats of one case are not new patients. The interval therefore holds the spread
    between patients, not that between trainings. Equal values give an interval of width 0; one case alone gives NaN
    ends, since nothing is known about the spread.

    Args:
        values: one value per case, or one row per seed.
        n_boot: number of resamples.
        level: coverage, in (0, 1).
        seed: of the resampling; equal seeds give equal intervals.

    Shape:
        - values: ``cases`` or ``seeds x cases``

    Raises:
        ValueError: When there is no case, a value is not finite, or the level is outside (0, 1).

    Reference:
        Efron, Better bootstrap confidence intervals, JASA 1987; computed by ``scipy.stats.bootstrap``.

    Example:
        >>> print(bootstrap_mean([0.7, 0.8, 0.9, 0.8]))
        0.800 [0.750, 0.875]
    """
    per_case = _per_case(values, "values")
    if not 0 < level < 1:
        raise ValueError(f"level expected a value in (0, 1), got {level}")
    mean = float(per_case.mean())
    if len(per_case) == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    if np.ptp(per_case) <= 1e-12 * max(1.0, float(np.abs(per_case).max())):
        return Interval(mean, mean, mean, len(per_case))
    found = bootstrap(
        (per_case,),
        np.mean,
        n_resamples=n_boot,
        confidence_level=level,
        method="BCa",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(per_case))


def paired_difference(a: ArrayLike, b: ArrayLike, n_boot: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of ``a - b`` over the same cases with its bootstrap interval: ``a`` is better where it lies above 0.

    Seeds are averaged within each case and method first; ``a`` and ``b`` may have different numbers of seeds. Then the
    differences per case are resampled, so what makes a case hard for both methods cancels.

    Args:
        a: scores of one method, larger is better.
        b: scores of the other, cases in the same order.
        n_boot: number of resamples.
        level: coverage, in (0, 1).
        seed: of the resampling.

    Shape:
        - a, b: ``cases`` or ``seeds x cases``

    Raises:
        ValueError: When the numbers of cases differ, and as :func:`bootstrap_mean`.

    Example:
        >>> paired_difference([0.8, 0.9, 0.7], [0.6, 0.8, 0.6]).low > 0
        True
    """
    first, second = _per_case(a, "a"), _per_case(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"expected the same cases in a and b, got {len(first)} and {len(second)}")
    return bootstrap_mean(first - second, n_boot, level, seed)


def _per_case(values: ArrayLike, name: str) -> NDArray[np.float64]:
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"{name} expected cases or seeds x cases, got shape {np.shape(values)}")
    if not np.isfinite(table).all():
        raise ValueError(f"{name} expected finite values, got {int((~np.isfinite(table)).sum())} NaN or Inf")
    per_case: NDArray[np.float64] = table.mean(axis=0)
    return per_case
