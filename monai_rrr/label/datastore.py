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

"""MONAI Label's view of our cases and labels: one image per case, in a folder or in a DICOMweb archive."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from monai_rrr.data.datalist import Case
from monai_rrr.errors import DataError
from monai_rrr.label.dicom import STUDY, first_value, study_case
from monai_rrr.label.store import FINAL, CaseStore

if find_spec("monailabel") is not None:
    from monailabel.datastore.dicom import DICOMWebDatastore
    from monailabel.interfaces.datastore import Datastore
else:  # the extra "label" is not installed
    DICOMWebDatastore = Datastore = object

__all__ = ["CaseDatastore", "StudyDatastore"]


class CaseDatastore(Datastore):  # type: ignore[misc]
    """The cases of a folder; an image id is a case id, and so is a label id.

    Args:
        store: cases and labels.
        name: shown to clients.
    """

    def __init__(self, store: CaseStore, name: str) -> None:
        self._store, self._name = store, name

    def name(self) -> str:
        """Return the name."""
        return self._name

    def set_name(self, name: str) -> None:
        """Refuse: the name is that of the folder."""
        raise _fixed("name")

    def description(self) -> str:
        """Return a description."""
        return f"{len(self._store.cases)} cases of several MR modalities"

    def set_description(self, description: str) -> None:
        """Refuse."""
        raise _fixed("description")

    def datalist(self) -> list[dict[str, Any]]:
        """Return image and newest final label of every case that has one."""
        found = (self._store.newest(name, FINAL) for name in self._store.cases)
        return [
            {"image": str(self._store.image(one.case_id)), "label": str(one.path), "meta": {"label": dict(one.info)}}
            for one in found
            if one is not None
        ]

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return tag -> label id."""
        return dict.fromkeys(self._store.tags(image_id), image_id)

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """Return the label id, or an empty text."""
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_image(self, image_id: str, params: Any = None) -> io.BytesIO:
        """Return the file that a viewer shows."""
        return io.BytesIO(Path(self.get_image_uri(image_id)).read_bytes())

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of the file that a viewer shows."""
        return str(self._store.image(image_id))

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> io.BytesIO:
        """Return the newest label."""
        return io.BytesIO(Path(self.get_label_uri(label_id, label_tag)).read_bytes())

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of the newest label, or an empty text."""
        found = self._store.newest(label_id, label_tag)
        return "" if found is None else str(found.path)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return the notes about a case and the names of its modalities."""
        return {**self._store.notes(image_id), "modalities": list(self._store.case(image_id)["modalities"])}

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what came with the newest label."""
        found = self._store.newest(label_id, label_tag)
        return {} if found is None else dict(found.info)

    def get_labeled_images(self, label_tag: str | None = None, labels: Sequence[str] | None = None) -> list[str]:
        """Return the cases with a label of this tag, final by default."""
        wanted = label_tag or FINAL
        return [name for name in self._store.cases if wanted in self._store.tags(name)]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: Sequence[str] | None = None) -> list[str]:
        """Return the cases without a label of this tag."""
        done = set(self.get_labeled_images(label_tag))
        return [name for name in self._store.cases if name not in done]

    def list_images(self) -> list[str]:
        """Return all ids."""
        return list(self._store.cases)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Refuse: images are not given away."""
        raise _fixed("data set")

    def refresh(self) -> None:
        """Do nothing: files are read when they are asked for."""

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        """Refuse: the folder of the images is never written to."""
        raise _fixed("data set")

    def remove_image(self, image_id: str) -> None:
        """Refuse."""
        raise _fixed("data set")

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]) -> str:
        """Keep a label."""
        return self._store.submit(image_id, label_filename, label_tag, label_info).case_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove the labels of a case."""
        self._store.remove(label_id, label_tag)

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Keep notes."""
        self._store.note(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: Mapping[str, Any]) -> None:
        """Refuse: what was handed in stays as it was."""
        raise _fixed("label")

    def status(self) -> dict[str, Any]:
        """Return how much is done."""
        counts: dict[str, int] = {}
        for name in self._store.cases:
            for tag in self._store.tags(name):
                counts[tag] = counts.get(tag, 0) + 1
        return {"total": len(self._store.cases), "completed": counts.get(FINAL, 0), "label_tags": counts}

    def json(self) -> dict[str, Any]:
        """Return the ids with their tags."""
        objects = {name: {"labels": self._store.tags(name)} for name in self._store.cases}
        return {"name": self._name, "description": self.description(), "objects": objects}


class StudyDatastore(DICOMWebDatastore):  # type: ignore[misc]
    """The MR series of a DICOMweb archive; an image id is that of a series, a case is its study.

    Labels are kept as NIfTI on the voxels of the study's first modality; a ``final`` one that comes with ``label_info``
    also goes to the archive, as a DICOM segmentation.

    Args:
        store: labels; filled with the studies that are asked for.
        arguments: of MONAI Label's class.
    """

    def __init__(self, store: CaseStore, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._rrr = store

    def case(self, series: str) -> Case:
        """Return the study of a series as a case.

        Raises:
            DataError: ``case-unknown``; as :func:`~monai_rrr.label.dicom.study_case`.
        """
        named = series and set(series) <= set("0123456789.")
        found = self._client.search_for_series(search_filters={"SeriesInstanceUID": series}) if named else []
        if not found:
            raise DataError("case-unknown", f"expected the id of a series, got {series[:80]!r}", field="image")
        return self._study(first_value(found[0], STUDY))

    def labeled(self) -> CaseStore:
        """Return the store with every study that has a label."""
        for folder in sorted(self._rrr.folder.glob("labels/*/*")):
            self._study(unquote(folder.name))
        return self._rrr

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]) -> str:
        """Keep a label."""
        one = self._rrr.submit(self.case(image_id)["case_id"], label_filename, label_tag, label_info)
        if label_tag == FINAL and label_info.get("label_info"):
            return str(super().save_label(image_id, str(one.path), label_tag, dict(label_info)))
        return image_id

    def _study(self, study: str) -> Case:
        if study not in self._rrr.cases:
            series = self._client.search_for_series(
                study_instance_uid=study, search_filters={"Modality": "MR"}, fields=["0008103E"]
            )
            self._rrr.cases[study] = study_case(study, series, self._file)
        return self._rrr.cases[study]

    def _file(self, series: str) -> Path:
        """The file in the cache: the first answer for a series is a temporary copy."""
        answer = Path(self.get_image_uri(series))
        kept = Path(self._datastore.image_path(), f"{series}.nii.gz")
        return kept if kept.is_file() else answer


def _fixed(what: str) -> DataError:
    return DataError("read-only", f"expected a question, got a change of the {what}, which stays as it is")
