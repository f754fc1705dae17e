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

"""The cases of a folder that annotators are to see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_rrr.data.datalist import Case, load_datalist
from monai_rrr.data.image_case import image_case
from monai_rrr.errors import DataError

__all__ = ["list_studies"]


def list_studies(source: str | Path, modalities: Sequence[str]) -> list[Case]:
    """List cases without their labels.

    Args:
        source: what :func:`~monai_rrr.data.load_datalist` takes; or a folder of 4-D files, one for each case.
        modalities: order of the volumes of a 4-D file.

    Raises:
        DataError: as there.
        DatasetError: as there.
    """
    folder = Path(source)
    try:
        return load_datalist(folder, with_labels=False)
    except DataError as error:
        files = sorted(p for p in folder.glob("*.nii*") if p.is_file()) if folder.is_dir() else []
        if error.code != "no-cases" or not files:
            raise
        return [image_case(path, modalities) for path in files]
