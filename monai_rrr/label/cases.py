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

"""From what a client calls an image to the case with all its modalities."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_rrr.data.datalist import Case
from monai_rrr.data.image_case import image_case
from monai_rrr.errors import DataError
from monai_rrr.label.store import CaseStore

__all__ = ["CASE", "Cases", "images_of"]

CASE = "case"
"""Key of a request under which the server puts the case; what a client puts there is overwritten."""


def images_of(case: Mapping[str, Any]) -> Case:
    """Return the case without anything that says what is in its images."""
    return {key: case[key] for key in ("case_id", "modalities", "volumes") if key in case}


class Cases:
    """The images that clients may name: those of the data set, and what they have just uploaded.

    Args:
        store: cases and labels.
        uploads: folders that the server writes uploads to; no other path is accepted.
        modalities: order of the volumes of an uploaded 4-D file.
        find: finds a case by another id, such as that of a DICOM series. None: ids are those of the store.
        labeled: refills the store before training. None: it is always full.
    """

    def __init__(
        self,
        store: CaseStore,
        uploads: Sequence[str | Path],
        modalities: Sequence[str],
        find: Callable[[str], Case] | None = None,
        labeled: Callable[[], CaseStore] | None = None,
    ) -> None:
        self._store, self._labeled = store, labeled
        self._uploads = tuple(os.path.realpath(folder) for folder in uploads)
        self._modalities = tuple(modalities)
        self._find = find or store.case

    def of_image(self, image_id: str) -> Case:
        """Return the case of an image of the data set.

        Raises:
            DataError: ``case-unknown``.
        """
        return self._find(image_id)

    def of_request(self, image: object) -> Case:
        """Return the case of the data set or of an upload.

        Raises:
            DataError: ``case-unknown``, for anything else, such as a path on the server; as
                :func:`~monai_rrr.data.image_case`.
        """
        if isinstance(image, str) and image and "\0" not in image and os.path.isabs(image):
            path = os.path.realpath(image)
            if any(path != root and Path(path).is_relative_to(root) for root in self._uploads):
                try:
                    return image_case(path, self._modalities)
                except DataError as error:
                    where = {"case_id": error.case_id, "field": error.field, "hint": error.hint}
                    raise DataError(error.code, error.message, path=Path(path).name, **where) from None
        if not isinstance(image, str):
            raise DataError("case-unknown", f"expected the id of a case, got {type(image).__name__}", field="image")
        return self.of_image(image)

    def labeled(self) -> CaseStore:
        """Return the store, with every case that has a label."""
        return self._store if self._labeled is None else self._labeled()
