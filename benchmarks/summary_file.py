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

"""The summary of the runs of a benchmark: as JSON, as Markdown beside it, and printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_rrr.metrics import Interval
from monai_rrr.utils.files import atomic_write

__all__ = ["rounded", "write_summary"]


def rounded(interval: Interval) -> list[float]:
    """Mean and ends of an interval."""
    return [round(value, 4) for value in (interval.mean, interval.low, interval.high)]


def write_summary(result: Path, record: Mapping[str, Any], text: str) -> None:
    """Write a summary.

    Args:
        result: JSON file; its folder is made when missing.
        record: JSON values.
        text: the same in Markdown.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(result, (json.dumps(record, indent=1) + "\n").encode())
    atomic_write(result.with_suffix(".md"), text.encode())
    print(text)
