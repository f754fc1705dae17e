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


"""The application: global options and the list of commands."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

import monai_rrr

from .annotators import annotators
from .archive import archive
from .audit import audit
from .console import set_debug
from .decoy import decoy
from .demo import demo
from .explain import explain
from .label import label
from .phantom import phantom
from .pseudonymize import pseudonymize
from .report import report
from .run import RUN_SETTINGS, run
from .tags import tags
from .verify import verify

__all__ = ["app", "main"]

EPILOG = (
    "Exit codes: 0 done; 1 a fault of the program or the machine; 2 something given can't be used (an option, a file, "
    "a data set); 130 interrupted. For research only, not a medical device."
)

app = typer.Typer(
    name="monai-rrr",
    help="Brain tumor maps and segmentations from slice tags instead of voxel masks, for multimodal 3D MRI.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"monai-rrr {monai_rrr.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    set_debug(debug)


app.command()(demo)
app.command()(phantom)
app.command()(verify)
app.command()(tags)
app.command()(pseudonymize)
app.command()(explain)
app.command()(report)
app.command()(audit)
app.command()(decoy)
app.command()(annotators)
app.command()(archive)
app.command()(label)
app.command(context_settings=RUN_SETTINGS)(run)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal can't show must not end the program.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
