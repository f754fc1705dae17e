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

from monai.bundle import ConfigParser
from torch import nn

from monai_rrr.bundle import check_network, read_document, walk
from monai_rrr.errors import ConfigError
from monai_rrr.utils.weights import load_weights

__all__ = ["load_network", "load_weights"]


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
