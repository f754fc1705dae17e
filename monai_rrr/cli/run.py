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


"""``monai-rrr run``: a bundle through the gate, then through MONAI's own ``run``, in this process."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from monai_rrr.errors import ConfigError

from .bundle_run import config_files, find_bundle, plain_value
from .console import guarded

__all__ = ["RUN_SETTINGS", "run"]

RUN_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}

# Arguments of MONAI's `run` itself: each of them would bring in a file or a class that the gate has not seen.
_RESERVED = ("config_file", "meta_file", "logging_file", "args_file", "properties_path", "tracking", "workflow_name")


@guarded
def run(
    context: typer.Context,
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, or name of one of ours.")],
    config: Annotated[
        list[str], typer.Option(help="File in the bundle's configs, such as train or train.yaml; repeatable, in order.")
    ] = ["train"],  # noqa: B006
    trust: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256",
            help="Content hash of a bundle that you reviewed, as a refusal prints it: its code is let through.",
        ),
    ] = None,
) -> None:
    """Run a bundle: checked first, so that its configurations run nothing but known parts of MONAI, torch and ours.

    Other options override entries of the configuration, as for python -m monai.bundle run. What the gate allows and
    what it does not promise is in docs/bundle_gate.md. For research only, not a medical device.

    Example: monai-rrr run brats_mri_equivariant_cam --config train --dataset_dir DATA --tags_file tags.csv --epochs 5
    """
    home = find_bundle(bundle)
    files = config_files(home, config)
    overrides = _overrides(context.args)
    overrides.setdefault("bundle_root", str(home))
    sys.dont_write_bytecode = True  # a trusted bundle must stay as it was hashed
    os.environ.pop("MONAI_ALLOW_PICKLE", None)

    from monai_rrr.bundle import pass_gate

    pass_gate(home, files, overrides, trust)
    if trust is not None:
        sys.path.insert(0, str(home))

    from monai.bundle import run as run_workflow

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file")  # MONAI's advice to do what the gate has done
        run_workflow(config_file=[str(path) for path in files], **overrides)


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read ``--key value`` and ``--key=value`` as ``monai.bundle`` does.

    Raises:
        ConfigError: ``override``.
    """
    found: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise ConfigError("override", f"expected --KEY VALUE, got {word!r}")
        if not equals and waiting and not waiting[0].startswith("--"):
            value, equals = waiting.pop(0), "="
        if key in _RESERVED:
            raise ConfigError("override", f"expected an entry of the configuration, got --{key}", field=key)
        if key in found:
            raise ConfigError("override", f"--{key} is given twice", field=key)
        found[key] = plain_value(value) if equals else True
    return found
