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

"""How much of a training is done."""

from __future__ import annotations

from typing import Any

__all__ = ["training_progress"]


def training_progress(state: Any, iteration: int | None = None) -> float:
    """Share of the training before the present iteration, in [0, 1]: 0 in the first one, 1 in the last one.

    Args:
        state: of an ignite engine; ``iteration`` counts from 1.
        iteration: another one than the present one.

    Example:
        >>> from ignite.engine import State
        >>> training_progress(State(iteration=6, max_epochs=2, epoch_length=5))
        0.5555555555555556
    """
    steps = int(state.max_epochs or 1) * int(state.epoch_length or 1)
    number = int(state.iteration) if iteration is None else iteration
    return min(1.0, max(0, number - 1) / max(1, steps - 1))
