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


"""Options that every command has which looks at a bundle or at any network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BUNDLE",
    "NETWORK",
    "BundleName",
    "Checkpoint",
    "Config",
    "Layer",
    "Modalities",
    "NetworkId",
    "Size",
    "Spacing",
    "TrustCode",
    "TrustWeights",
]

BUNDLE, NETWORK = "With a bundle", "With any network"

Checkpoint = Annotated[Path | None, typer.Option(help="Weights; by default models/model.pt of the bundle.")]
BundleName = Annotated[
    str | None, typer.Option(help="Folder or name of a bundle of this project.", rich_help_panel=BUNDLE)
]
TrustWeights = Annotated[
    bool,
    typer.Option("--trust-weights", help="Accept weights without a manifest, made elsewhere.", rich_help_panel=BUNDLE),
]
Config = Annotated[Path | None, typer.Option(help="YAML or JSON that defines a network.", rich_help_panel=NETWORK)]
Layer = Annotated[str | None, typer.Option(help="Layer to explain.", rich_help_panel=NETWORK)]
Modalities = Annotated[
    list[str] | None,
    typer.Option(help="Input channel, in order; repeatable. Default: t1, t1c, t2, flair.", rich_help_panel=NETWORK),
]
Spacing = Annotated[
    float | None, typer.Option(min=0.1, help="Voxel size for the network in mm.", rich_help_panel=NETWORK)
]
Size = Annotated[
    tuple[int, int, int] | None,
    typer.Option(
        help="Voxels X Y Z around the center of the brain, for networks that take one size only (transformers).",
        rich_help_panel=NETWORK,
    ),
]
NetworkId = Annotated[str, typer.Option(help="Entry of the config.", rich_help_panel=NETWORK)]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Let the config run code. Only for files you reviewed.", rich_help_panel=NETWORK),
]
