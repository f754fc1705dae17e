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


"""``monai-rrr audit``: one page that says where a network looks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .audit_run import Source, audit_bundle, audit_network, describe_network
from .console import guarded, out
from .network_options import (
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

__all__ = ["audit"]


@guarded
def audit(
    data: Annotated[Path, typer.Argument(metavar="DATA", help=DATA_HELP + " Masks help, but aren't needed.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for index.html.")] = Path("audit"),
    checkpoint: Checkpoint = None,
    region: Annotated[
        str | None, typer.Option(help="Where evidence should lie: WT, TC or ET. Default: WT, every label but 0.")
    ] = None,
    convention: Annotated[str | None, typer.Option(help=CONVENTION_HELP + " Needed for a region.")] = None,
    section: Annotated[str, typer.Option(help="Section of a JSON datalist.")] = "training",
    sanity: Annotated[int, typer.Option(min=0, help="Cases for the sanity check; 0 leaves it out.")] = 2,
    tolerance: Annotated[float, typer.Option(min=0, help="Of the pointing game, in mm.")] = 5.0,
    max_cases: Annotated[int, typer.Option(min=1, help="Show pictures of so many cases, the worst ones.")] = 24,
    bundle: BundleName = None,
    trust_weights: TrustWeights = False,
    config: Config = None,
    layer: Layer = None,
    class_idx: Annotated[
        int | None,
        typer.Option("--class", min=0, help="Class to explain. Default: the predicted one.", rich_help_panel=NETWORK),
    ] = None,
    modality: Modalities = None,
    spacing: Spacing = None,
    size: Size = None,
    network_id: NetworkId = "network_def",
    trust_code: TrustCode = False,
) -> None:
    """Where does a network look? How much of its evidence lies in the lesion, in the rest of the brain, outside of it?

    Takes a bundle of this project (--bundle) or any MONAI network by Grad-CAM (--config, --checkpoint, --layer) and
    skull-stripped images, some with masks. Writes one page: shares of the evidence beside those of maps that know
    nothing, what each modality contributes, a sanity check, and pictures, worst cases first. For research only.

    Example: monai-rrr audit BraTS2021 --config net.yaml --checkpoint net.pt --layer layer4 --class 1

    Example: monai-rrr audit BraTS2021 --bundle brats_mri_equivariant_cam --convention brats2018
    """
    if (bundle is None) == (config is None):
        raise typer.BadParameter("expected either --bundle, or --config with --checkpoint and --layer")
    if region is not None and region not in ("WT", "TC", "ET"):
        raise typer.BadParameter(f"expected --region WT, TC or ET, got {region}")
    if convention is None and (bundle is not None or region is not None):
        raise typer.BadParameter("expected --convention NAME: masks have to be read")
    options = {"tolerance_mm": tolerance, "max_cases": max_cases}
    if bundle is not None:
        with tempfile.TemporaryDirectory(prefix="monai_rrr_") as work:
            source = Source(data.resolve(), section, sanity, folder)
            path = audit_bundle(
                source, bundle, checkpoint, region or "WT", str(convention), Path(work), options, trust_weights
            )
    elif config is None or checkpoint is None or layer is None:
        raise typer.BadParameter("expected --checkpoint and --layer with --config; explain --list-layers shows layers")
    else:
        from monai_rrr.report import NetworkUnderAudit, load_network, mri_preprocessing
        from monai_rrr.utils.enums import MODALITIES

        audited = NetworkUnderAudit(
            network=load_network(config, checkpoint, network_id, trust_code),
            layer=layer,
            modalities=tuple(modality or MODALITIES),
            class_idx=class_idx,
            preprocessing=mri_preprocessing(spacing, size=size),
            region=region,
            convention=convention,
        )
        facts = describe_network(config, checkpoint, layer, class_idx, region, spacing)
        path = audit_network(Source(data, section, sanity, folder), audited, facts, options)
    out().print(f"{path}", markup=False)
