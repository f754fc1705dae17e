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


"""``monai-rrr explain``: heatmaps, masks and pictures of cases, by a bundle or by any MONAI network."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import guarded, out
from .explain_bundle import run_inference
from .network_options import (
    BUNDLE,
    NETWORK,
    BundleName,
    Checkpoint,
    Config,
    Layer,
    Modalities,
    NetworkId,
    Size,
    Spacing,
    TrustCode,
    TrustWeights,
)
from .verify import CONVENTION_HELP, DATA_HELP

__all__ = ["explain"]


@guarded
def explain(
    data: Annotated[Path | None, typer.Argument(metavar="[CASE]", help=DATA_HELP + " Or use --image.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="NAME=FILE, such as flair=scan.nii.gz; repeatable.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the results, one folder per case.")] = Path(
        "explained"
    ),
    checkpoint: Checkpoint = None,
    bundle: BundleName = None,
    convention: Annotated[
        str, typer.Option(help="Label values to write. " + CONVENTION_HELP, rich_help_panel=BUNDLE)
    ] = "brats2018",
    trust_weights: TrustWeights = False,
    config: Config = None,
    layer: Layer = None,
    list_layers: Annotated[
        bool, typer.Option("--list-layers", help="List the layers to choose from and stop.", rich_help_panel=NETWORK)
    ] = False,
    class_idx: Annotated[
        list[int] | None,
        typer.Option(
            "--class",
            min=0,
            help="Class to explain, from 0; repeatable. Default: the predicted one.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    modality: Modalities = None,
    spacing: Spacing = None,
    size: Size = None,
    network_id: NetworkId = "network_def",
    trust_code: TrustCode = False,
) -> None:
    """Show where a network sees evidence, on skull-stripped images: heatmaps and masks as NIfTI, and a picture.

    Two ways. A bundle of this project: --bundle. Any MONAI network, classification or segmentation, by Grad-CAM:
    --config, --checkpoint and --layer. Results lie on the voxels of the input files. For research only.

    Example: monai-rrr explain BraTS2021/BraTS2021_00001 --bundle brats_mri_equivariant_cam

    Example: monai-rrr explain BraTS2021/BraTS2021_00001 --config net.yaml --checkpoint net.pt --layer layer4 --class 1
    """
    if (bundle is None) == (config is None):
        raise typer.BadParameter("expected either --bundle, or --config with --checkpoint and --layer")
    if (data is None) == (not image):
        raise typer.BadParameter("expected either CASE, or --image NAME=FILE")
    with tempfile.TemporaryDirectory(prefix="monai_rrr_") as name:
        work = Path(name)
        source = data.resolve() if data is not None else _datalist(image or [], work / "datalist.json")
        if bundle is not None:
            written = run_inference(source, folder.resolve(), bundle, checkpoint, convention, work, trust_weights)
        elif checkpoint is None:
            raise typer.BadParameter("expected --checkpoint with --config")
        else:
            from .explain_network import layers_of, run_network

            setting: dict[str, Any] = {"network_id": network_id, "trust_code": trust_code}
            setting |= {"modalities": tuple(modality or ()), "spacing": spacing, "size": size}
            if list_layers:
                for text in layers_of(source, config or Path(), checkpoint, **setting):
                    out().print(text, markup=False)
                return
            if layer is None:
                raise typer.BadParameter("expected --layer NAME; --list-layers shows the choice")
            written = run_network(source, folder, config or Path(), checkpoint, layer, class_idx, **setting)
    out().print("\n".join(str(path) for path in written), markup=False)


def _datalist(images: list[str], path: Path) -> Path:
    """Write a datalist of one case that is given as files."""
    pairs = [text.partition("=") for text in images]
    if any(not name or not file for name, _, file in pairs):
        raise typer.BadParameter(f"expected --image NAME=FILE, got {images}")
    case_id = Path(pairs[0][2]).name.split(".")[0]
    modalities = {name: str(Path(file).resolve()) for name, _, file in pairs}
    path.write_text(json.dumps({"training": [{"case_id": case_id, "modalities": modalities}]}), "utf-8")
    return path
