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


from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from monai_rrr.utils.seeds import derive_seed, seed_all


def test_a_pure_function_of_all_keys():
    seeds = {derive_seed(*keys) for keys in ((0,), (0, 0), (0, 1), (1, 0), (1,), (0, 0, 1), (0, 1, 0), (2**40, 1))}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(3, 4) == derive_seed(3, 4) == 3144599136


def test_all_global_states():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    seed_all(1, 2)
    first = draw()
    assert draw() != first
    seed_all(1, 2)
    assert draw() == first


def test_exception():
    with pytest.raises(ValueError, match=r"must be at least 0, got \(-1, 2\)"):
        derive_seed(-1, 2)
