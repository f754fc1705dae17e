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


"""Random seeds as a pure function of what they are for."""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["derive_seed", "seed_all", "step_generator"]


def derive_seed(*keys: int) -> int:
    """Return a seed in [0, 2^32) that depends on all keys and on their order, and on nothing else.

    Args:
        keys: whole numbers, at least 0, such as the seed of the run, an epoch and the index of a sample.

    Raises:
        ValueError: When a key is negative.

    Example:
        >>> derive_seed(0, 1, 2) == derive_seed(0, 1, 2), derive_seed(0, 1, 2) == derive_seed(0, 2, 1)
        (True, False)
    """
    if min(keys) < 0:
        raise ValueError(f"seeds and keys must be at least 0, got {keys}")
    # The length goes in first, because SeedSequence pads with zeros: (1,) and (1, 0) would be the same.
    return int(np.random.SeedSequence((len(keys), *keys)).generate_state(1)[0])


def seed_all(*keys: int) -> None:
    """Set the random states of Python, NumPy and PyTorch (all devices in use) to :func:`derive_seed` of the keys.

    As ignite's ``manual_seed``, which looks for a package for TPUs in each call, and as torch's, which asks for every
    kind of device: together a millisecond for every sample.
    """
    seed = derive_seed(*keys)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (what transforms of others draw from)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def step_generator(seed: int, step: int, rank: int | None = None) -> torch.Generator:
    """Return a generator on the CPU whose draws are a pure function of seed, step and, if given, rank.

    What is drawn in a step is then the same in a resumed run, and touches no global random state.

    Args:
        seed: of what is drawn.
        step: iteration or epoch.
        rank: of the process, where each one draws for itself.

    Example:
        >>> one, two = (torch.rand(3, generator=step_generator(0, 7, rank=1)) for _ in range(2))
        >>> torch.equal(one, two)
        True
    """
    key = seed * 1_000_003 + step
    return torch.Generator().manual_seed((key if rank is None else key * 1009 + rank) % 2**63)
