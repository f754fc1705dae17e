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

"""What a file of weights may be: tensors, by its name and by its first bytes, before anything parses it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from monai_rrr.errors import CheckpointError

__all__ = ["check_weights"]

_ENDINGS = (".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz", ".ts", ".pt2", ".pte", ".zip", ".tar", ".gz", ".so")
_STARTS = {b"\x93NUMPY": "a NumPy array", b"\x1f\x8b": "a gzip archive", b"\x7fELF": "a program", b"MZ": "a program"}
_PICKLE, _OLD_TORCH = b"\x80", b"\x80\x02\x8a\nl\xfc\x9cF"  # torch.save before 1.6 begins with this number
_HINT = "save the weights alone, torch.save(network.state_dict(), path)"


def check_weights(path: str | Path) -> None:
    """Refuse what is no file of tensors: TorchScript and exported programs, plain pickles, NumPy files, archives.

    It opens no archive but the one that ``torch.save`` writes, and of that reads the table of contents only.

    Args:
        path: file that is going to be loaded as weights.

    Raises:
        CheckpointError: ``checkpoint-format``.
    """
    path = Path(path)
    if path.suffix.lower() in _ENDINGS and not path.name.lower().endswith(".pth.tar"):
        _refuse(path, f"expected a file of tensors, such as model.pt, got '{path.suffix}'")
    with path.open("rb") as file:
        start = file.read(8)
    for magic, what in _STARTS.items():
        if start.startswith(magic):
            _refuse(path, f"expected tensors, got {what}")
    if start.startswith(_PICKLE) and start != _OLD_TORCH:
        _refuse(path, "expected tensors, got a pickle, which can run code")
    if not start.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        _refuse(path, f"expected tensors, got a damaged file: {error}")
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        _refuse(path, "expected tensors, got TorchScript, which is a program")
    if "data.pkl" not in inner:
        _refuse(path, "expected tensors, got another archive (an exported program or NumPy arrays)")


def _refuse(path: Path, message: str) -> None:
    raise CheckpointError("checkpoint-format", message, path=path, hint=_HINT)
