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


"""``monai-rrr explain`` for any network: read config, checkpoint and cases, write what explains them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .console import counted, progress

__all__ = ["layers_of", "run_network"]


def run_network(
    source: Path,
    folder: Path,
    config: Path,
    checkpoint: Path,
    layer: str,
    class_idx: Sequence[int] | None,
    *,
    network_id: str,
    trust_code: bool,
    modalities: Sequence[str],
    spacing: float | None,
    size: Sequence[int] | None = None,
) -> list[Path]:
    """Explain every case; return the files.

    Args:
        source: folder of cases or JSON datalist.
        folder: for the results.
        config: defines the network.
        checkpoint: its weights.
        layer: layer to explain.
        class_idx: classes to explain, None for the predicted one.
        network_id: entry of the config.
        trust_code: let the config run code.
        modalities: input channels in order; empty for t1, t1c, t2, flair.
        spacing: voxel size for the network in mm.
        size: voxels that the network takes; None for any.
    """
    import torch

    from monai_rrr.data import load_datalist
    from monai_rrr.report import explain_network, load_network, mri_preprocessing, read_image, write_explanation
    from monai_rrr.utils.enums import MODALITIES
    from monai_rrr.utils.files import sha256
    from monai_rrr.utils.provenance import Provenance

    names = tuple(modalities) or MODALITIES
    cases = load_datalist(source, with_labels=False, require=names)
    network = load_network(config, checkpoint, network_id, trust_code)
    settings = {
        "config_file_sha256": sha256(config),
        "network_id": network_id,
        "layer": layer,
        "class_idx": None if class_idx is None else list(class_idx),
        "modalities": list(names),
        "spacing": spacing,
    }
    provenance = Provenance(checkpoint, settings)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    files: list[Path] = []
    with progress("heatmaps") as step:
        for case in counted(cases, step):
            image = read_image(case, names)
            found = explain_network(
                network, image, layer, class_idx, preprocessing=mri_preprocessing(spacing, size=size), device=device
            )
            files += write_explanation(found, image.as_tensor(), str(case["case_id"]), folder, names, provenance)
    return files


def layers_of(
    source: Path,
    config: Path,
    checkpoint: Path,
    *,
    network_id: str,
    trust_code: bool,
    modalities: Sequence[str],
    spacing: float | None,
    size: Sequence[int] | None = None,
) -> list[str]:
    """List the layers that can be explained, one text per layer, from a pass of the first case.

    Args:
        source: folder of cases or JSON datalist.
        config: defines the network.
        checkpoint: its weights.
        network_id: entry of the config.
        trust_code: let the config run code.
        modalities: input channels in order; empty for t1, t1c, t2, flair.
        spacing: voxel size for the network in mm.
        size: voxels that the network takes; None for any.
    """
    from monai_rrr.attribution import find_layers
    from monai_rrr.data import load_datalist
    from monai_rrr.report import load_network, mri_preprocessing, read_image
    from monai_rrr.utils.enums import MODALITIES

    names = tuple(modalities) or MODALITIES
    cases = load_datalist(source, with_labels=False, require=names)
    network = load_network(config, checkpoint, network_id, trust_code)
    seen = mri_preprocessing(spacing, size=size)(read_image(cases[0], names)).as_tensor()[None]
    found = find_layers(network, seen)
    width = max((len(name) for name in found), default=0)
    return [f"{name:{width}}  {' x '.join(str(n) for n in shape)}" for name, shape in found.items()]
