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

"""The MONAI Label app: bundles with heatmaps, strategies that use explanations, training from what is handed in."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import monai_rrr
from monai_rrr.data.tags import read_tags
from monai_rrr.errors import ConfigError
from monai_rrr.label.cases import CASE, Cases
from monai_rrr.label.datastore import CaseDatastore, StudyDatastore
from monai_rrr.label.model import BundleModel
from monai_rrr.label.score import SCORES
from monai_rrr.label.store import CaseStore
from monai_rrr.label.studies import list_studies
from monai_rrr.label.tasks import ExplanationScoring, HeatmapInfer, MaskInfer, MostUrgent, SubmittedTrain
from monai_rrr.utils.enums import MODALITIES

if find_spec("monailabel") is not None:
    from monailabel.config import settings
    from monailabel.datastore.dicom import DICOMwebClientX
    from monailabel.interfaces.app import MONAILabelApp
    from monailabel.tasks.activelearning.first import First
    from monailabel.tasks.activelearning.random import Random
else:  # the extra "label" is not installed
    settings = DICOMwebClientX = First = Random = None
    MONAILabelApp = object

__all__ = ["HEATMAP", "RightReasonsApp"]

HEATMAP = "_heatmap"


class RightReasonsApp(MONAILabelApp):  # type: ignore[misc]
    """The app that ``monai-rrr label`` starts, in the server and in its background tasks.

    Args:
        app_dir: work folder; ``label.json`` in it holds the options of the command line.
        studies: folder, datalist or DICOMweb address.
        conf: of MONAI Label; not used.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self._work = Path(app_dir)
        options = json.loads((self._work / "label.json").read_text("utf-8"))
        self._tags = None if options["tags"] is None else read_tags(options["tags"])
        self._options = options
        self.bundles = {
            Path(folder).name: BundleModel(folder, self._work, options["settings"]) for folder in options["bundles"]
        }
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf or {}),
            name=f"monai_rrr {monai_rrr.__version__}",
            description="Brain tumor bundles that show where they look. Research only, not for diagnostic purposes",
            version=monai_rrr.__version__,
        )

    def init_datastore(self) -> Any:
        """Return the data store of a folder or an archive."""
        modalities = next((model.modalities for model in self.bundles.values()), MODALITIES)
        uploads = (tempfile.gettempdir(), settings.MONAI_LABEL_SESSION_PATH)
        folder = self._work / "store"
        if not str(self.studies).startswith(("http://", "https://")):
            store = CaseStore(list_studies(self.studies, modalities), folder)
            self._cases = Cases(store, uploads, modalities)
            return CaseDatastore(store, Path(self.studies).name)
        store = CaseStore((), folder)
        client = DICOMwebClientX(url=self.studies)
        self._download_dcmqi_tools()
        found = StudyDatastore(
            store,
            client,
            settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER,
            settings.MONAI_LABEL_DICOMWEB_CACHE_PATH,
        )
        self._cases = Cases(store, uploads, modalities, find=found.case, labeled=found.labeled)
        return found

    def init_infers(self) -> dict[str, Any]:
        """Return two models for every bundle: mask and heatmap."""
        masks: dict[str, Any] = {name: MaskInfer(model) for name, model in self.bundles.items()}
        return {**masks, **{f"{name}{HEATMAP}": HeatmapInfer(model) for name, model in self.bundles.items()}}

    def init_trainers(self) -> dict[str, Any]:
        """Return a trainer for every bundle."""
        return {name: SubmittedTrain(model, self._cases, self._tags) for name, model in self.bundles.items()}

    def init_strategies(self) -> dict[str, Any]:
        """Return those of MONAI Label that need nothing, and one for every score."""
        return {"random": Random(), "first": First(), **{name: MostUrgent(name) for name in SCORES}}

    def init_scoring_methods(self) -> dict[str, Any]:
        """Return the one that fills all scores."""
        return {"explanations": ExplanationScoring(self.bundles, self._cases)}

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Run a model for a case of the data set, or an upload; no other path is accepted.

        Raises:
            ConfigError: ``request``.
            DataError: ``case-unknown``.
        """
        model = request.get("model")
        if model not in self._infers:
            known = ", ".join(self._infers)
            raise ConfigError("request", f"expected a model out of {known}, got {str(model)[:80]!r}", field="model")
        case = self._cases.of_request(request.get("image"))
        answer, details = self._infers[model]({**request, CASE: case})
        if request.get("save_label") is True:
            store = datastore or self._datastore
            tag = request.get("label_tag") or "original"
            tag = str(getattr(tag, "value", tag))  # MONAI Label's own tags are members of an enumeration
            store.save_label(request["image"], answer, tag, {"model": model})
        return {"label": answer, "tag": "original", "file": answer, "params": details}

    def batch_infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Keep the answers for many cases as labels, ``original`` by default."""

        def one(task: Mapping[str, Any], store: Any) -> dict[str, Any]:
            wanted = {key: task[key] for key in ("model", "image", "save_label", "label_tag") if key in task}
            found = self.infer(wanted, store)
            os.unlink(found["file"])
            return {"label": task["image"], "params": found["params"]}

        # MONAI Label divides by the number of GPUs, which may be none
        plain = {**request, "multi_gpu": False}
        found: dict[str, Any] = self._batch_infer(plain, datastore or self._datastore, one)
        return found

    def bundle_path(self, model: str) -> None:
        """Return nothing: bundles put no code on the path."""

    def _download_dcmqi_tools(self) -> None:
        """Download nothing: ``itkimage2segimage`` comes with the extra."""
        os.makedirs(os.path.join(self.app_dir, "bin"), exist_ok=True)
