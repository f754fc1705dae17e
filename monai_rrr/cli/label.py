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


"""``monai-rrr label``: a labeling server for 3D Slicer and OHIF, with bundles that show where they look."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from monai_rrr.errors import ConfigError, DataError

from .bundle_run import find_bundle, plain_value
from .console import guarded, out
from .label_launch import check_extra, check_host, prepare, server_command

__all__ = ["label"]


@guarded
def label(
    studies: Annotated[
        str, typer.Option(help="Folder of cases, datalist in JSON, or address of a DICOMweb archive (http://...).")
    ],
    bundle: Annotated[
        list[str] | None, typer.Option(help="Bundle to serve, folder or name; repeatable. Default: all of ours.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder for labels, notes, weights and logs.")] = Path("label_work"),
    tags: Annotated[Path | None, typer.Option(help="Slice tags, to train with cases that have no label.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Entry of the bundles to override; repeatable.")
    ] = None,
    host: Annotated[str, typer.Option(help="Other hosts than this machine need a login and TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="OHIF's panel asks at 8000.")] = 8000,
    ssl_keyfile: Annotated[Path | None, typer.Option(help="Key, to be reached from other machines.")] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(help="Its certificate.")] = None,
) -> None:
    """Serve bundles to annotators: masks, heatmaps, who and why; what they hand in trains the bundles again.

    Needs the extra "label", in an environment of its own (make install-label). The viewer OHIF is at /ohif/ for
    DICOMweb archives; 3D Slicer connects with its MONAI Label module. For research only, not a medical device.

    Example: monai-rrr label --studies BraTS2021 --bundle brats_mri_guided_attention
    """
    remote = studies.startswith(("http://", "https://"))
    if not remote and not Path(studies).exists():
        raise DataError("source-missing", "expected a folder, a datalist or an address, got nothing", path=studies)
    if (ssl_keyfile is None) != (ssl_certfile is None):
        raise typer.BadParameter("expected --ssl-keyfile and --ssl-certfile, got one of them")
    check_host(host, ssl_keyfile is not None)
    settings = _settings(setting or [])
    bundles = [find_bundle(name) for name in bundle] if bundle else _ours()
    check_extra()
    app, environment = prepare(work, bundles, settings, tags)
    source = studies if remote else str(Path(studies).resolve())
    ssl = None if ssl_keyfile is None or ssl_certfile is None else (ssl_keyfile, ssl_certfile)
    command = server_command(app, source, host, port, ssl)
    out().print(f"serving {', '.join(one.name for one in bundles)} at {host}:{port}; labels in {app}", markup=False)
    sys.stdout.flush()
    os.chdir(app)
    os.execve(command[0], command, {**os.environ, **environment})  # one process: what stops it stops the server


def _settings(words: list[str]) -> dict[str, Any]:
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError("override", f"expected KEY=VALUE, got {word!r}")
        found[key] = plain_value(value)
    return found


def _ours() -> list[Path]:
    import monai_rrr

    folder = Path(monai_rrr.__file__).resolve().parents[1] / "bundles"
    found = sorted(path.parents[1] for path in folder.glob("*/configs/inference.yaml"))
    if not found:
        hint = "bundles come with the source: clone the repository, or give --bundle"
        raise ConfigError("bundle-missing", "expected bundles beside the package, found none", path=folder, hint=hint)
    return found
