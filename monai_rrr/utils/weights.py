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


"""Weights of a network from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.tensor_file import read_tensors

__all__ = ["check_fit", "load_weights"]

WRAPPERS = ("state_dict", "model", "network", "net", "model_state_dict")


def load_weights(network: nn.Module, checkpoint: str | Path, require_manifest: bool = False) -> None:
    """Load a checkpoint of tensors into a network; every name and shape must fit.

    Accepts a state dictionary, alone or under one of the keys ``state_dict``, ``model``, ``network``, ``net``, with or
    without the prefix ``module.`` of parallel training. Files that hold other objects than tensors are refused, since
    reading them can run code. Where a manifest lies beside the file (``model.pt.json``), the file must have its
    SHA-256.

    Args:
        network: takes the weights.
        checkpoint: ``.pt`` or ``.pth`` file.
        require_manifest: refuse a file that has no manifest. Weights from elsewhere have none.

    Raises:
        CheckpointError: When the file can't be read, is not what its manifest says, holds no weights, or does not fit.
    """
    path = Path(checkpoint)
    content = read_tensors(path, require_manifest=require_manifest)
    state = _state(content)
    if state is None:
        raise CheckpointError("checkpoint-content", f"expected names and tensors, got {_kinds(content)}", path=path)
    check_fit(network, state, path)
    try:
        network.load_state_dict(state)
    except CheckpointError as error:  # a network that looks at what it gets does not know the file
        raise CheckpointError(error.code, error.message, path=path, hint=error.hint) from None


def check_fit(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise when a state dictionary does not have exactly the names and shapes of a network.

    Raises:
        CheckpointError: ``checkpoint-mismatch``, naming what differs.
    """
    wanted = network.state_dict()
    missing, unknown = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    shapes = [
        f"{name}: {tuple(wanted[name].shape)} and {tuple(state[name].shape)}"
        for name in sorted(set(wanted) & set(state))
        if wanted[name].shape != state[name].shape
    ]
    for what, names in (("lacks", missing), ("has besides", unknown), ("has other shapes for", shapes)):
        if names:
            text = f"expected the {len(wanted)} tensors of {type(network).__name__}, the file {what} {_some(names)}"
            raise CheckpointError("checkpoint-mismatch", text, path=path, hint="is it the checkpoint of this network?")


def _state(content: Any) -> dict[str, Tensor] | None:
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        return None
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _kinds(content: Any) -> str:
    return f"entries {_some(sorted(map(str, content)))}" if isinstance(content, Mapping) else type(content).__name__


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
