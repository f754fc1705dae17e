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

"""A bundle that answers one case at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor

from monai_rrr.bundle import pass_gate
from monai_rrr.data.stamp import FileStamp
from monai_rrr.errors import CheckpointError, ConfigError
from monai_rrr.label.cases import images_of
from monai_rrr.label.prediction import Prediction
from monai_rrr.label.tendency import tendency_details
from monai_rrr.networks.nets.right_reasons_net import TellsWhoNet
from monai_rrr.report.save_tendency import SaveTendencyd
from monai_rrr.transforms.answer import AnswerLabeld
from monai_rrr.transforms.heatmap_output import SaveHeatmapsd
from monai_rrr.utils.class_map import to_classes
from monai_rrr.utils.conventions import get_convention
from monai_rrr.utils.enums import MODALITIES, REGIONS
from monai_rrr.utils.manifest import manifest_path, read_manifest
from monai_rrr.utils.nifti_file import affine_geometry
from monai_rrr.utils.weights import load_weights

__all__ = ["TRAINED_WITH", "BundleModel"]

TRAINED_WITH = "trained_with"
"""Key of a manifest: entries of the configuration that fit the weights."""

WRITERS = (SaveHeatmapsd, SaveTendencyd, AnswerLabeld)


class BundleModel:
    """The inference of a bundle, one case at a time, without files.

    Configurations pass the gate first. Weights are read after their SHA-256 was compared with the manifest, and again
    when the file changes. Threads take turns.

    Args:
        folder: of the bundle.
        work: folder for the cache of images.
        settings: entries of the configuration to override, such as ``spacing``; those that it does not have are for
            training.

    Raises:
        ConfigError: ``bundle-missing``, when the folder holds no bundle; as
            :func:`~monai_rrr.bundle.pass_gate`.
    """

    def __init__(self, folder: str | Path, work: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder, self.work = Path(folder).resolve(), Path(work).resolve()
        self.name = self.folder.name
        config = self.folder / "configs" / "inference.yaml"
        if not config.is_file():
            message = f"expected a bundle with configs/inference.yaml, got {self.name!r}"
            raise ConfigError("bundle-missing", message, path=self.folder)
        self.settings = dict(settings or {})
        self.metadata = json.loads((self.folder / "configs" / "metadata.json").read_text("utf-8"))
        self._turn = threading.Lock()
        self._stamp: FileStamp | None = None
        self._parser = self._parse({})
        self.modalities: tuple[str, ...] = tuple(self._parser.get("modalities", MODALITIES))

    @property
    def weights(self) -> Path:
        """The checkpoint."""
        return self.folder / "models" / "model.pt"

    @property
    def annotators(self) -> tuple[str, ...]:
        """Pseudonyms of the annotators that the bundle tells apart."""
        return tuple(self._parser.get("annotators", ()))

    @property
    def heatmap_key(self) -> str | None:
        """Where the postprocessing leaves the heatmaps of the regions; None for a bundle that has none."""
        steps = self._parser["postprocessing"]
        for step in steps["transforms"] if isinstance(steps, Mapping) else steps:
            if step.get("_target_", "").endswith(f".{SaveHeatmapsd.__name__}"):
                return str(step.get("key", "pred"))
        return None

    def predict(self, case: Mapping[str, Any], mirror: bool = False) -> Prediction:
        """Return what the network says about a case.

        Args:
            case: as of :func:`~monai_rrr.data.load_datalist`; its label is not read.
            mirror: let the network see the case mirrored left to right, and mirror the result back: with a network
                that looks at the right evidence little changes.

        Raises:
            CheckpointError: When there are no weights.
            ConfigError: ``bundle-refused``, when the weights are not those of their manifest.
            DataError: When an image can't be read.
            InferenceError: When the result is not finite, or memory is short.
        """
        with self._turn, torch.no_grad():
            network = self._network()
            device = next(network.parameters()).device
            data = dict(self._content("preprocessing")(images_of(case)))
            image = torch.as_tensor(data["image"])[None].to(device)
            # canonical axes: the first runs from left to right
            image = image.flip(2) if mirror else image
            present = torch.as_tensor(data["present"])[None]
            found = self._content("inferer")(image, network, present=present, case_id=[str(data["case_id"])])
            data["pred"] = _first(found, mirror)
            details: dict[str, Any] = {}
            maps: dict[str, NDArray[np.float32]] = {}
            if isinstance(network, TellsWhoNet) and not mirror:
                versions = found["annotators"] if isinstance(found, Mapping) else found
                maps, details = tendency_details(network, image, versions, data["geometry"])
            for step in self._content("postprocessing").transforms:
                if not isinstance(step, WRITERS):
                    data = step(data)
        return self._prediction(data, maps, details)

    def _parse(self, trained_with: Mapping[str, Any]) -> ConfigParser:
        config = self.folder / "configs" / "inference.yaml"
        plain = ConfigParser.load_config_file(config)
        used = {key: value for key, value in {**self.settings, **trained_with}.items() if key in plain}
        pass_gate(self.folder, [config], used, base=self.folder)
        parser = ConfigParser(plain)
        places = {"bundle_root": self.folder, "cache_dir": self.work / "cache", "output_dir": self.work / "eval"}
        parser.update({**used, **{key: str(path) for key, path in places.items()}})
        return parser

    def _network(self) -> torch.nn.Module:
        """The network with the weights that the file has now."""
        if not self.weights.is_file():
            hint = f"train it: POST /train/{self.name}, or monai-rrr run {self.name}"
            raise CheckpointError("checkpoint-missing", "expected trained weights, there are none", hint=hint)
        stamp = FileStamp.of(str(self.weights))
        if stamp != self._stamp:
            known = read_manifest(self.weights) if manifest_path(self.weights).exists() else {}
            self._parser = self._parse(known.get(TRAINED_WITH, {}))
            fresh: torch.nn.Module = self._content("network")
            load_weights(fresh, self.weights, bool(self._parser.get("require_manifest", True)))
            self._stamp = stamp
        network: torch.nn.Module = self._content("network")
        return network.eval()

    def _content(self, key: str) -> Any:
        found = self._parser.get_parsed_content(key)
        return found if key != "postprocessing" or isinstance(found, Compose) else Compose(found)

    def _prediction(
        self, data: Mapping[str, Any], maps: dict[str, NDArray[np.float32]], details: dict[str, Any]
    ) -> Prediction:
        affine = np.asarray(data["geometry"]["source_affine"], dtype=np.float64)
        header = data.get("source_header")
        annotators: dict[str, NDArray[np.uint8]] = {}
        if (shown := self.heatmap_key) is not None:
            convention = get_convention(self._parser.get("label_convention"))
            label = to_classes(np.asarray(torch.as_tensor(data["label_map"])[0]), convention).astype(np.uint8)
            maps = {**_heatmaps(data[shown], data.get("relevance")), **maps}
        if self.annotators:
            versions = np.asarray(torch.as_tensor(data["pred"]), dtype=np.uint8)
            label, annotators = versions[0], dict(zip(self.annotators, versions[1:], strict=True))
        if "class_score" in data:
            scores = [round(float(p), 6) for p in data["class_score"]]
            details = {**details, "class_scores": dict(zip(REGIONS, scores, strict=True))}
        geometry = affine_geometry(affine) if header is None else np.asarray(header, dtype=np.float64)
        return Prediction(str(data["case_id"]), label, maps, annotators, affine, geometry, details)


def _first(found: Any, mirror: bool) -> Any:
    """The only sample of a batch, mirrored back when it was mirrored."""
    if isinstance(found, Mapping):
        return {key: _first(value, mirror and value.ndim > 2) for key, value in found.items()}
    one: Tensor = found[0]
    return one.flip(one.ndim - 3) if mirror else one


def _heatmaps(heatmap: Any, relevance: Any) -> dict[str, NDArray[np.float32]]:
    """Fused maps of the regions, those of every modality that is there, and relevance."""
    found = torch.as_tensor(heatmap).float()
    groups = found if found.ndim == 5 else found[None]
    out = {region: groups[0, index].numpy() for index, region in enumerate(REGIONS)}
    out.update(_by_modality("", groups[1:]))
    if relevance is not None:
        out.update(_by_modality("relevance_", torch.as_tensor(relevance).float()))
    return out


def _by_modality(prefix: str, groups: Sequence[Tensor] | Tensor) -> dict[str, NDArray[np.float32]]:
    return {
        f"{prefix}{modality}_{region}": one.numpy()
        for modality, maps in zip(MODALITIES, groups, strict=False)
        if bool(maps.any())
        for region, one in zip(REGIONS, maps, strict=True)
    }
