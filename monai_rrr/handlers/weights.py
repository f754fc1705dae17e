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


"""The trained network as a file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite import distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from monai_rrr.utils.tensor_file import write_tensors
from monai_rrr.utils.weights import load_weights

__all__ = ["WeightsExport", "WeightsLoader"]


class WeightsExport:
    """When training ends, write the network's state dictionary, with a manifest beside it.

    The file is a plain one for ``torch.load(path, weights_only=True)``: MONAI's bundle commands and MONAI Label read
    it as they read any other. In place of MONAI's ``CheckpointSaver(save_final=True)``, which writes in place, and
    under the same name also when training failed.

    Args:
        network: unwrapped.
        path: file, such as ``models/model.pt``.
        about: JSON values for the manifest.
    """

    def __init__(self, network: nn.Module, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
        self.network, self.path, self.about = network, Path(path), dict(about or {})

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write, in the first process."""
        if idist.get_rank() == 0:
            write_tensors(self.path, self.network.state_dict(), self.about)


class WeightsLoader:
    """When an engine starts, load the weights of a file whose SHA-256 is that of its manifest.

    In place of MONAI's ``CheckpointLoader``, which reads whatever the file has become: a flipped bit loads without an
    error, as the checksums in a ``.pt`` file are not looked at.

    Args:
        network: takes the weights; unwrapped.
        load_path: file written by :class:`WeightsExport`, or another one, see ``require_manifest``.
        require_manifest: False accepts a file without manifest, such as weights from elsewhere.

    Raises:
        CheckpointError: See :func:`~monai_rrr.utils.weights.load_weights`.
    """

    def __init__(self, network: nn.Module, load_path: str | Path, require_manifest: bool = True) -> None:
        self.network, self.load_path, self.require_manifest = network, Path(load_path), require_manifest

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load."""
        load_weights(self.network, self.load_path, self.require_manifest)
