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

"""One network, one user at a time: what a call changes on it for its own time must not meet another thread's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["evaluating", "exclusive"]

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_GUARD = Lock()


@contextmanager
def exclusive(network: nn.Module) -> Iterator[None]:
    """Keep other threads from this network; the same thread may enter again. Other networks are not held up.

    Hooks, modes and replaced buffers live on the network itself: a second thread would see those of the first.
    """
    inner = network.module if isinstance(network, DistributedDataParallel) else network
    with _GUARD:
        lock = _LOCKS.setdefault(inner, RLock())
    with lock:
        yield


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, exclusively, and each of its modules back into the mode it was in.

    MONAI's ``eval_mode`` also turns gradients off, and puts every module into training mode when the network was.
    """
    with exclusive(network):
        modes = {module: module.training for module in network.modules()}
        network.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
