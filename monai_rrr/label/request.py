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

"""What a client may ask for: everything else is refused before it reaches a file or a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monai_rrr.errors import ConfigError

__all__ = ["InferRequest", "TrainRequest"]

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
DTYPES = ("uint8", "uint16", "float32")
MAX_EPOCHS = 100_000
# What MONAI Label and its viewers send along, and what changes nothing here.
IGNORED = frozenset(
    (
        *("model", "image", "description", "device", "model_filename", "logging", "timeout", "user", "client_id"),
        *("result_compress", "result_write_to_file", "restore_label_idx", "save_label", "label_tag", "label_info"),
        *("session", "label", "case", "name", "dataset", "bundle_path", "local_rank", "run_id", "gpus", "multi_gpu"),
        *("force_multi_gpu", "tracking", "tracking_uri", "tracking_experiment_name", "tracking_run_name"),
    )
)


@dataclass(frozen=True)
class InferRequest:
    """Options of an inference.

    Args:
        extension: of the file that is sent back.
        dtype: of its voxels; by default uint8 for masks and levels, float32 for volumes.
        heatmap: name; None: the first.
        levels: of a heatmap; 0: the volume itself, float32.
        annotator: whose version of the mask; None: the consensus.
    """

    extension: str = ".nii.gz"
    dtype: str | None = None
    heatmap: str | None = None
    levels: int = 5
    annotator: str | None = None

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> InferRequest:
        """Read the fields of a request.

        Raises:
            ConfigError: ``request``, naming the field, for a value of another kind or a field that nothing reads.
        """
        _known(request, {"result_extension", "result_dtype", "heatmap", "levels", "annotator"})
        return cls(
            extension=_choice(request, "result_extension", EXTENSIONS) or ".nii.gz",
            dtype=_choice(request, "result_dtype", DTYPES),
            heatmap=_text(request, "heatmap"),
            levels=_number(request, "levels", 5, 0, 255),
            annotator=_text(request, "annotator"),
        )


@dataclass(frozen=True)
class TrainRequest:
    """Options of a training.

    Args:
        epochs: passes over the labels.
        held_out: share of the cases that training does not see.
        pretrained: begin with the weights that are served.
        seed: of the training.
    """

    epochs: int = 50
    held_out: float = 0.2
    pretrained: bool = True
    seed: int = 0

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> TrainRequest:
        """Read the fields of a request; see :meth:`InferRequest.of`."""
        _known(request, {"max_epochs", "val_split", "pretrained", "seed"})
        share = request.get("val_split", 0.2)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise ConfigError("request", f"expected a share from 0 to below 1, got {share!r:.80}", field="val_split")
        pretrained = request.get("pretrained", True)
        if not isinstance(pretrained, bool):
            raise ConfigError("request", f"expected true or false, got {pretrained!r:.80}", field="pretrained")
        return cls(
            epochs=_number(request, "max_epochs", 50, 1, MAX_EPOCHS),
            held_out=float(share),
            pretrained=pretrained,
            seed=_number(request, "seed", 0, 0, 2**32 - 1),
        )


def _known(request: Mapping[str, Any], wanted: set[str]) -> None:
    strange = sorted(str(key)[:80] for key in set(request) - wanted - IGNORED)
    if strange:
        message = f"expected some of {', '.join(sorted(wanted))}, got {', '.join(map(repr, strange[:8]))}"
        raise ConfigError("request", message, field="params")


def _choice(request: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str | None:
    value = request.get(key)
    if value is None:
        return None
    # a list: the choices themselves, as viewers send them back when nobody chose
    value = value[0] if isinstance(value, list) and value else value
    if value not in allowed:
        raise ConfigError("request", f"expected one of {', '.join(allowed)}, got {value!r:.80}", field=key)
    return str(value)


def _text(request: Mapping[str, Any], key: str) -> str | None:
    value = request.get(key)
    value = value[0] if isinstance(value, list) and value else value
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 80:
        raise ConfigError("request", f"expected a name, got {value!r:.80}", field=key)
    return value


def _number(request: Mapping[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = request.get(key, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        message = f"expected a whole number from {least} to {most}, got {value!r:.80}"
        raise ConfigError("request", message, field=key)
    return value
