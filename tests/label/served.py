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

"""What tests that start a server share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_rrr.utils.nifti_file import affine_geometry, nifti_bytes

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/inference.yaml"))

SHIM = Path(__file__).parent / "cpu_torchvision"
NOT_INSTALLED = "MONAI LABEL IS NOT INSTALLED: `make install-label`, or MONAI_RRR_LABEL_PYTHON=/path/to/python"


def python_with_monai_label() -> str | None:
    """The interpreter of an environment with MONAI Label: named, made by `make install-label`, or this one."""
    named = os.environ.get("MONAI_RRR_LABEL_PYTHON")
    for choice in (named, str(ROOT / ".venv-label" / "bin" / "python"), sys.executable):
        if choice and Path(choice).exists():
            found = subprocess.run(
                [choice, "-c", "import importlib.util as u, sys; sys.exit(not u.find_spec('monailabel'))"]
            )
            if found.returncode == 0:
                return choice
    return None


def served_values(label: Path) -> tuple[Any, Any]:
    """Voxels of a label file of the cohort (1, 2, 4) in the values that the server speaks (1, 2, 3), and its affine."""
    image = nib.load(label)
    values = np.asarray(image.dataobj).astype(np.uint8)
    values[values == 4] = 3
    return values, image.affine


def as_file(values: Any, affine: Any) -> bytes:
    return nifti_bytes(values, affine_geometry(affine))
