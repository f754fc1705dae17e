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

"""Cross-validation splits of a datalist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from monai.data import partition_dataset

__all__ = ["leave_one_fold_out"]

T = TypeVar("T")


def leave_one_fold_out(cases: Sequence[T], folds: int, fold: int, seed: int = 0) -> tuple[list[T], list[T]]:
    """Split cases into those that train and those of one fold that are held out.

    Args:
        cases: all cases; each lands in exactly one fold.
        folds: number of folds, at least 2 and at most the number of cases.
        fold: which one is held out, from 0.
        seed: of the shuffling.

    Raises:
        ValueError: When ``folds`` or ``fold`` is out of range.

    Example:
        >>> leave_one_fold_out(["a", "b", "c", "d"], folds=2, fold=0)
        (['d', 'a'], ['c', 'b'])
    """
    if not 2 <= folds <= len(cases) or not 0 <= fold < folds:
        raise ValueError(f"expected 2 to {len(cases)} folds and a fold below that, got {folds} and {fold}")
    parts = partition_dataset(list(cases), num_partitions=folds, shuffle=True, seed=seed)
    return [case for index, part in enumerate(parts) if index != fold for case in part], list(parts[fold])
