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


"""What all commands share: how they print, how they show progress, and how they fail."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from monai_rrr.errors import named_error

__all__ = ["EXIT_FAULT", "EXIT_INPUT", "EXIT_INTERRUPTED", "counted", "guarded", "out", "progress", "set_debug"]

EXIT_FAULT = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_DEBUG = "MONAI_RRR_DEBUG"


def set_debug(on: bool) -> None:
    """Show tracebacks from now on, in the processes started from here too."""
    if on:
        os.environ[_DEBUG] = "1"


def out() -> Console:
    """Return the console for results, 100 columns wide in a file; messages and progress go to standard error."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=True)


def _err() -> Console:
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn exceptions of a command into one clear text and an exit code; ``--debug`` lets them through.

    2: something given can't be used (a file, a data set, a configuration); 130: interrupted; 1: anything else.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            _err().print("\ninterrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except typer.Exit:
            raise
        except Exception as error:
            if os.environ.get(_DEBUG) or isinstance(error, typer.BadParameter):
                raise
            _err().print(_text(error), style="red", markup=False)
            raise typer.Exit(EXIT_FAULT if named_error(error) is None else EXIT_INPUT) from None

    return wrapper


def _text(error: Exception) -> str:
    named = named_error(error)
    if named is not None:
        return f"error: {named}"
    if isinstance(error, OSError):
        return f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return f"unexpected {type(error).__name__}: {error}\nTo see where it comes from: monai-rrr --debug COMMAND ..."


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left on standard error; yields ``report(done, total)``.

    Where standard error is no terminal, such as in a log, there is one line at the start and one at the end.
    """
    console, begin = _err(), time.monotonic()
    if not console.is_terminal:
        console.print(f"{what} ...", markup=False)
        yield lambda done, total: None
        console.print(f"{what}: {time.monotonic() - begin:.0f} s", markup=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def counted(items: Sequence[T], report: Callable[[int, int], None]) -> Iterator[T]:
    """Iterate and report how many items are done."""
    for done, item in enumerate(items):
        report(done, len(items))
        yield item
    report(len(items), len(items))
