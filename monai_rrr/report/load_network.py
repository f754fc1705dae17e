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

"""A network of a user: its definition in a config, its weights in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from monai_rrr.bundle import check_network, read_document, walk
from monai_rrr.errors import CheckpointError, ConfigError
from monai_rrr.utils.weights import check_weights

__all__ = ["load_network", "load_weights"]

WRAPPERS = ("state_dict", "model", "network", "net", "model_state_dict")


def load_network(
    config: str | Path, checkpoint: str | Path | None = None, network_id: str = "network_def", trust_code: bool = False
) -> nn.Module:
    """Build the network of a MONAI bundle or of any config, load its weights, and put it into evaluation mode.

    A config can run any code. Without ``trust_code`` only plain values and classes of ``monai.networks``,
    ``monai_rrr.networks`` and ``torch.nn`` are accepted, in the entry itself and in what it refers to; nothing else of
    the file is looked at.

    Args:
        config: YAML or JSON file.
        checkpoint: weights, see :func:`load_weights`. None: random weights.
        network_id: entry of the config that defines the network, such as ``"network_def"`` of the model zoo.
        trust_code: accept expressions (``$``), macros (``%``) and any class. For files that you wrote or reviewed.

    Raises:
        ConfigError: When the config can't be read, lacks the entry, is refused, or does not build a network.
        CheckpointError: When the weights can't be read or don't fit.
    """
    path = Path(config)
    content = read_document(path)
    if network_id not in content:
        raise ConfigError(
            "config-entry", f"expected an entry '{network_id}', got {sorted(map(str, content))}", path=path
        )
    if not trust_code:
        content = _plain_part(content, network_id, path)
    try:
        network = ConfigParser(content).get_parsed_content(network_id)
    except Exception as error:  # whatever the constructor raises
        raise ConfigError("config-network", f"'{network_id}' can't be built: {error}", path=path) from error
    if not isinstance(network, nn.Module):
        message = f"expected '{network_id}' to build a torch.nn.Module, got {type(network).__name__}"
        raise ConfigError("config-network", message, path=path)
    if checkpoint is not None:
        load_weights(network, checkpoint)
    return network.eval()


def load_weights(network: nn.Module, checkpoint: str | Path) -> None:
    """Load a checkpoint of tensors into a network; every name and shape must fit.

    Accepts a state dictionary, alone or under one of the keys ``state_dict``, ``model``, ``network``, ``net``, with or
    without the prefix ``module.`` of parallel training. Files that hold other objects than tensors are refused, since
    reading them can run code.

    Args:
        network: takes the weights.
        checkpoint: ``.pt`` or ``.pth`` file.

    Raises:
        CheckpointError: When the file can't be read, is a program or a pickle, holds no weights, or does not fit.
    """
    path = Path(checkpoint)
    if path.is_file():
        check_weights(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common error for damaged, foreign and forbidden files
        forbidden = "Weights only load failed" in str(error)
        found = "other objects too, or a damaged file" if forbidden else f"{type(error).__name__}: {error}"
        hint = "save the weights alone, torch.save(network.state_dict(), path)"
        message = f"expected a file of tensors, got {found}"
        raise CheckpointError("checkpoint-unreadable", message, path=path, hint=hint) from error
    state = _state(content)
    if state is None:
        raise CheckpointError("checkpoint-content", f"expected names and tensors, got {_kinds(content)}", path=path)
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
    network.load_state_dict(state)


def _plain_part(content: Mapping[str, Any], network_id: str, path: Path) -> dict[str, Any]:
    part: dict[str, Any] = {}
    wanted = [network_id]
    while wanted:
        key = wanted.pop()
        if key in part:
            continue
        if key not in content:
            raise ConfigError("config-entry", f"expected an entry '{key}' to refer to, there is none", path=path)
        part[key] = content[key]
        wanted += [re.split("::|#", text[1:])[0] for text in _strings(content[key]) if text.startswith("@")]
    refusals = check_network(part, path.name)
    if refusals:
        message = "expected plain values and networks, got" + "".join(f"\n  - {refusal}" for refusal in refusals)
        raise ConfigError("config-code", message + "\n", path=path, hint="if you trust the file, allow code")
    return part


def _strings(value: Any) -> Iterator[str]:
    return (text for _, text in walk({"": value}) if isinstance(text, str))


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
