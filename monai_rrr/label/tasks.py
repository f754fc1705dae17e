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

"""What MONAI Label calls: inference, training, scoring and active learning of our bundles."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_rrr.data.tags import Tags
from monai_rrr.errors import ConfigError, RRRError
from monai_rrr.label.cases import CASE, Cases
from monai_rrr.label.model import BundleModel
from monai_rrr.label.prediction import LABELS, Prediction, to_levels
from monai_rrr.label.request import InferRequest, TrainRequest
from monai_rrr.label.score import SCORES, explanation_scores
from monai_rrr.label.training import train_bundle
from monai_rrr.utils.enums import REGIONS
from monai_rrr.utils.nifti_file import nifti_bytes
from monai_rrr.utils.provenance import INTENDED_USE

if find_spec("monailabel") is not None:
    from monailabel.interfaces.tasks.infer_v2 import InferTask
    from monailabel.interfaces.tasks.scoring import ScoringMethod
    from monailabel.interfaces.tasks.strategy import Strategy
    from monailabel.interfaces.tasks.train import TrainTask
else:  # the extra "label" is not installed
    InferTask = ScoringMethod = Strategy = TrainTask = object

__all__ = ["ExplanationScoring", "HeatmapInfer", "MaskInfer", "MostUrgent", "SubmittedTrain"]

LEVELS = 5
SERVED = "served"


class MaskInfer(InferTask):  # type: ignore[misc]
    """The label map of a bundle, with heatmap names, volumes, scores, and who and why in the JSON.

    Args:
        model: the bundle.
    """

    def __init__(self, model: BundleModel) -> None:
        who = {"annotator": ["consensus", *model.annotators]} if model.annotators else {}
        text = f"{model.metadata['description']} {INTENDED_USE}."
        super().__init__(type="segmentation", labels=dict(LABELS), dimension=3, description=text, config=who)
        self.model = model

    def is_valid(self) -> bool:
        """Whether there are weights."""
        return self.model.weights.is_file()

    def get_path(self, validate: bool = True) -> str | None:
        """Return the checkpoint."""
        return str(self.model.weights) if self.is_valid() or not validate else None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the file with the answer, and JSON values."""
        wanted = InferRequest.of(request)
        start = time.perf_counter()
        found = self.model.predict(request[CASE])
        array = self.voxels(found, wanted)
        path = _write(array, found, wanted)
        answer = {
            **found.summary(),
            "scores": explanation_scores(found),
            "label_names": self.labels,
            "intended_use": INTENDED_USE,
            "latencies": {"total": round(time.perf_counter() - start, 3)},
        }
        return path, answer

    def voxels(self, found: Prediction, wanted: InferRequest) -> NDArray[Any]:
        """Return the voxels of the answer."""
        return found.mask(wanted.annotator)


class HeatmapInfer(MaskInfer):
    """A heatmap of a bundle: in levels, which every viewer of label maps shows, or as a volume.

    Args:
        model: the bundle.
    """

    def __init__(self, model: BundleModel) -> None:
        super().__init__(model)
        self.description = f"Where {model.name} sees evidence, in levels; levels 0: the volume. {INTENDED_USE}."
        self.labels = {f"evidence {100 * level // LEVELS} %": level for level in range(1, LEVELS + 1)}
        names = _heatmap_names(model)
        self._config = {"heatmap": names, "levels": LEVELS}

    def voxels(self, found: Prediction, wanted: InferRequest) -> NDArray[Any]:
        """Return the levels, or the volume."""
        heatmap = found.heatmap(wanted.heatmap)
        return to_levels(heatmap, wanted.levels) if wanted.levels else heatmap


class SubmittedTrain(TrainTask):  # type: ignore[misc]
    """Train a bundle with the labels that were handed in.

    Args:
        model: the bundle.
        cases: labels.
        tags: slice tags of cases without label.
    """

    def __init__(self, model: BundleModel, cases: Cases, tags: Mapping[str, Tags] | None) -> None:
        super().__init__(f"Train {model.name} with the labels that were handed in")
        self.model, self.cases, self.tags = model, cases, tags

    def config(self) -> dict[str, Any]:
        """Return the options with their defaults."""
        plain = TrainRequest()
        return {"max_epochs": plain.epochs, "val_split": plain.held_out, "pretrained": True, "seed": plain.seed}

    def info(self) -> dict[str, Any]:
        """Describe the task."""
        return {"description": self.description, "config": self.config(), "version": self.model.metadata["version"]}

    def stats(self) -> dict[str, Any]:
        """Return what MONAI Label shows beside the task."""
        return {}

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Train."""
        return train_bundle(self.model, self.cases.labeled(), TrainRequest.of(request), self.tags)


class ExplanationScoring(ScoringMethod):  # type: ignore[misc]
    """Note the scores of every case without a final label, mean over the bundles that have weights.

    Args:
        models: bundles.
        cases: images.
    """

    def __init__(self, models: Mapping[str, BundleModel], cases: Cases) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in SCORES.items()))
        self.models, self.cases = models, cases

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Compute and note the scores."""
        ready = [model for model in self.models.values() if model.weights.is_file()]
        if not ready:
            raise ConfigError("score-missing", "expected a bundle with weights, got none", hint="train one first")
        done, left_out = 0, {}
        for image_id in datastore.get_unlabeled_images():
            try:
                case = self.cases.of_image(image_id)
                rows = [explanation_scores(m.predict(case), m.predict(case, mirror=True)) for m in ready]
            except RRRError as error:
                left_out[image_id] = error.code
                continue
            names = {name for row in rows for name in row}
            scores = {name: float(np.mean([row[name] for row in rows if name in row])) for name in sorted(names)}
            datastore.update_image_info(image_id, {f"score_{name}": value for name, value in scores.items()})
            done += 1
        return {"executed": done, "left_out": left_out}


class MostUrgent(Strategy):  # type: ignore[misc]
    """The case without final label that has the highest score and was served least often.

    Args:
        score: one of :data:`~monai_rrr.label.SCORES`.
    """

    def __init__(self, score: str) -> None:
        super().__init__(f"Highest first: {SCORES[score]}")
        self.score = score

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any] | None:
        """Return the case, or None when all have a label.

        Raises:
            ConfigError: ``score-missing``, when no case has this score yet.
        """
        waiting = datastore.get_unlabeled_images()
        if not waiting:
            return None
        notes = {image_id: datastore.get_image_info(image_id) for image_id in waiting}
        key = f"score_{self.score}"
        scored = [image_id for image_id in waiting if key in notes[image_id]]
        if not scored:
            hint = "POST /scoring/explanations; not every bundle gives every score"
            raise ConfigError("score-missing", f"expected cases with the score {self.score}, got none", hint=hint)
        counts = {image_id: int(notes[image_id].get(f"{SERVED}_{self.score}", 0)) for image_id in scored}
        chosen = min(scored, key=lambda image_id: (counts[image_id], -notes[image_id][key], image_id))
        datastore.update_image_info(chosen, {f"{SERVED}_{self.score}": counts[chosen] + 1})
        return {"id": chosen, "score": notes[chosen][key]}


def _heatmap_names(model: BundleModel) -> list[str]:
    names: list[str] = []
    if model.heatmap_key is not None:
        names += [*REGIONS, *(f"{modality}_{region}" for modality in model.modalities for region in REGIONS)]
    if model.annotators:
        names += ["disagreement", *(f"deviation_{name}" for name in model.annotators)]
    return names


def _write(array: NDArray[Any], found: Prediction, wanted: InferRequest) -> str:
    dtype = np.dtype(wanted.dtype or array.dtype)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        message = f"expected a type that holds {array.dtype} values, got {dtype}"
        raise ConfigError("request", message, field="result_dtype", hint="levels above 0 fit into uint8")
    handle, path = tempfile.mkstemp(suffix=wanted.extension)
    os.close(handle)
    if wanted.extension == ".nii.gz" and dtype in (np.dtype(np.uint8), np.dtype(np.float32)):
        Path(path).write_bytes(nifti_bytes(array.astype(dtype), found.header))
    else:
        sitk.WriteImage(_image(array.astype(dtype), found.affine), path, False)
    return path


def _image(array: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """The same voxels in ITK's world, whose first two axes run the other way."""
    image: Any = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(x) for x in lps[:, 3]])
    image.SetDirection([float(x) for x in (lps[:, :3] / spacing).ravel()])
    return image
