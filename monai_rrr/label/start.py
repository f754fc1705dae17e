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

"""Weights to begin a training with, when other people drew than last time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["weights_for"]

_IDS = "annotator_ids"
_FRESH = (_IDS, "rho", "prior_weight", "temperatures")
_BANKS = ("shared_bank.", "tendency_bank.")
_KERNELS = re.compile(r"(.*\btendencies\.)(\d+)(\..*)")


def weights_for(fresh: Mapping[str, Tensor], served: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network of several annotators to go on with, for the annotators of another one.

    Everything is that of the served network but what belongs to annotators: kernels of those who are in both stay with
    their id, the others begin anew, and so do reliabilities, temperatures and prototypes, which are patches of the
    cases of the last training.

    Args:
        fresh: state of a new network, whose annotators count.
        served: state of the network that is served.
    """
    places = {name: place for place, name in enumerate(_ids(served))}
    wanted = _ids(fresh)
    found: dict[str, Tensor] = {}
    for name, value in fresh.items():
        own = name.removeprefix("tendency.")
        kernels = _KERNELS.fullmatch(name)
        if own in _FRESH or own.startswith(_BANKS):
            found[name] = value
        elif kernels is not None:
            place = places.get(wanted[int(kernels[2])])
            found[name] = value if place is None else served[f"{kernels[1]}{place}{kernels[3]}"]
        elif name in served:
            found[name] = served[name]
    return found


def _ids(state: Mapping[str, Any]) -> Sequence[str]:
    rows = next(value for name, value in state.items() if name.split(".")[-1] == _IDS)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows.tolist()]
