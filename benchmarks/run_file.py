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

"""One file per run of a benchmark: what is there is not made again, and a failure leaves nothing."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["make_run"]


def make_run(target: Path, end: float, make: Callable[[], dict[str, Any]]) -> str:
    """Make a run, unless its file is there or time is up, and return a line that says what happened.

    Args:
        target: file of the run.
        end: seconds since 1970 after which nothing is begun.
        make: returns JSON values, ``step_seconds`` among them.
    """
    if target.exists():
        return f"{target.stem}: there"
    if time.time() > end:
        return f"{target.stem}: no time left"
    begin = time.perf_counter()
    try:
        record = make()
    except Exception:
        return f"{target.stem}: failed\n{traceback.format_exc()}"
    scratch = target.with_suffix(".tmp")
    scratch.write_text(json.dumps(record), encoding="utf-8")
    scratch.rename(target)
    return f"{target.stem}: {time.perf_counter() - begin:.1f} s, {1000 * record['step_seconds']:.0f} ms per step"
