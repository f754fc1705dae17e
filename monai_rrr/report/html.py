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

"""From a template of a page to HTML, and to a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from monai_rrr.utils.files import atomic_write

__all__ = ["render_html", "save_html"]


def render_html(template: str, content: Mapping[str, Any]) -> str:
    """Fill in a template; values are escaped unless it says otherwise."""
    return Environment(autoescape=True, trim_blocks=True).from_string(template).render(content)


def save_html(template: str, content: Mapping[str, Any], out: str | Path) -> Path:
    """Fill in a template and write the page.

    Args:
        template: of the page.
        content: name -> value.
        out: folder for ``index.html``, or an ``.html`` file.

    Returns:
        The file.
    """
    path = Path(out) if Path(out).suffix.lower() in (".html", ".htm") else Path(out) / "index.html"
    atomic_write(path, render_html(template, content).encode("utf-8"))
    return path
