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

"""Training started by MONAI Label's own app ``monaibundle``, which hands over pairs of image and label and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_rrr.data.image_case import image_case
from monai_rrr.errors import ConfigError
from monai_rrr.label.model import BundleModel
from monai_rrr.label.request import TrainRequest
from monai_rrr.label.store import FINAL, CaseStore
from monai_rrr.label.training import train_bundle

__all__ = ["ServedTraining"]


class ServedTraining:
    """The trainer of a bundle's ``configs/train.json``, which MONAI Label's app reads in place of ``train.yaml``.

    It makes cases of the images, checks the labels, derives slice tags from them and runs the bundle's own training
    (:func:`~monai_rrr.label.train_bundle`), beginning with the weights there are.

    Args:
        bundle_root: folder of the bundle.
        data: cases to train with, ``image`` and ``label`` each: a file of a case and a label map with the values 1
            necrotic core, 2 edema, 3 enhancing tumor.
        unseen: cases to hold out, the same.
        max_epochs: passes.

    Raises:
        ConfigError: ``label-annotator``, for a bundle that tells annotators apart: these pairs do not say who drew.
    """

    def __init__(
        self,
        bundle_root: str,
        data: Sequence[Mapping[str, str]],
        unseen: Sequence[Mapping[str, str]] = (),
        max_epochs: int = 50,
    ) -> None:
        self.root, self.max_epochs = Path(bundle_root), max_epochs
        self.data, self.unseen = list(data), list(unseen)

    def run(self) -> dict[str, Any]:
        """Train."""
        work = self.root / "eval" / "label"
        model = BundleModel(self.root, work)
        if model.annotators:
            hint = "use monai-rrr label, whose labels come with a pseudonym"
            message = "expected labels that say who drew them, MONAI Label's own app does not hand that over"
            raise ConfigError("label-annotator", message, field="annotator", hint=hint)
        pairs = [(image_case(one["image"], model.modalities), one["label"]) for one in (*self.unseen, *self.data)]
        store = CaseStore([case for case, _ in pairs], work / "store")
        for case, label in pairs:
            store.submit(str(case["case_id"]), label, FINAL, {})
        share = len(self.unseen) / max(len(pairs), 1)
        return train_bundle(model, store, TrainRequest(epochs=self.max_epochs, held_out=share))
