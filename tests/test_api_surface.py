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


"""The public API, compared with a snapshot: ``python tests/test_api_surface.py --update`` writes it anew."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

import monai_rrr

SNAPSHOT = Path(__file__).with_name("api_surface.json")
PRIVATE = {"cli", "__main__"}


def parameters(item: Any) -> str:
    """Return the names of the parameters; ``=`` marks those with a default, ``*`` what is keyword-only."""
    try:
        signature = inspect.signature(item)
    except ValueError:
        return "..."
    words, keyword_only = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            words.append("*")
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        words.append(f"{star}{parameter.name}{'' if parameter.default is parameter.empty else '='}")
    return ", ".join(word for word in words if word != "self")


def describe(item: Any) -> str:
    if inspect.isclass(item):
        methods = sorted(name for name in vars(item) if not name.startswith("_") and callable(getattr(item, name)))
        return f"class ({parameters(item)})" + (f": {', '.join(methods)}" if methods else "")
    if inspect.isroutine(item):
        return f"def ({parameters(item)})"
    return type(item).__name__ if callable(item) else "value"


def surface() -> dict[str, dict[str, str]]:
    found = {}
    for info in pkgutil.iter_modules(monai_rrr.__path__):
        if info.name not in PRIVATE:
            module = importlib.import_module(f"monai_rrr.{info.name}")
            names = getattr(module, "__all__", ())
            found[module.__name__] = {name: describe(getattr(module, name)) for name in sorted(names)}
    return {module: names for module, names in sorted(found.items()) if names}


def test_public_api_is_the_snapshot() -> None:
    expected = json.loads(SNAPSHOT.read_text("utf-8"))
    found = surface()
    flat = [
        {f"{module}.{name}": what for module, names in api.items() for name, what in names.items()}
        for api in (expected, found)
    ]
    changed = {key: tuple(api.get(key) for api in flat) for key in flat[0].keys() | flat[1].keys()}
    changed = {key: pair for key, pair in sorted(changed.items()) if pair[0] != pair[1]}
    assert changed == {}, (
        "changed on purpose? then python tests/test_api_surface.py --update, and a line in CHANGELOG.md"
    )


def test_names_are_documented_and_no_monai_class_is_shadowed() -> None:
    import monai.losses
    import monai.metrics
    import monai.networks.nets
    import monai.transforms

    taken = {
        name
        for module in (monai.losses, monai.metrics, monai.networks.nets, monai.transforms)
        for name, item in vars(module).items()
        if inspect.isclass(item)
    }
    for module, names in surface().items():
        for name in names:
            item = getattr(importlib.import_module(module), name)
            if inspect.isclass(item) or inspect.isroutine(item):
                assert inspect.getdoc(item), f"{module}.{name} has no docstring"
                assert name not in taken, f"{module}.{name} has the name of a MONAI class: short names in configs clash"


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python tests/test_api_surface.py --update")
    SNAPSHOT.write_text(json.dumps(surface(), indent=1) + "\n", encoding="utf-8")
