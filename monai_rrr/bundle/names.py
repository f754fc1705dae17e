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

"""Which classes, functions and constants a configuration may name: those that do no harm, whatever they are given."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from monai_rrr.bundle.policy import AREAS, DENIED, FILES, FUNCTIONS, LOCATED, PARTICULAR, SINGLE, SWITCHES

__all__ = ["Named", "RefusedError", "is_open", "resolve", "resolve_target"]


class RefusedError(Exception):
    """A name, value or expression that is not on the allow-list; the text says why."""


@dataclass(frozen=True)
class Named:
    """What a dotted name stands for."""

    value: Any
    canonical: str
    rest: tuple[str, ...] = ()

    @functools.cached_property
    def restricted(self) -> dict[str, Any]:
        """Parameters whose values need a check, with their defaults."""
        names = {*LOCATED, *SWITCHES, *PARTICULAR.get(self.canonical, ()), *self.files}
        return {name: default for name, default in _parameters(self.value).items() if name in names}

    @functools.cached_property
    def files(self) -> tuple[str, ...]:
        """Parameters that name a file which it writes."""
        if self.canonical.startswith("monai_rrr.handlers."):
            return ("path",)
        return FILES.get(self.canonical, ())

    def allowed(self, parameter: str) -> tuple[Any, ...] | None:
        """Return the values that a parameter may have; None: any."""
        special = PARTICULAR.get(self.canonical, {}).get(parameter)
        return special or SWITCHES.get(parameter) or LOCATED.get(parameter)


def resolve_target(name: str) -> Named:
    """Resolve a ``_target_`` as MONAI does: a short name of MONAI's, or a dotted name.

    Raises:
        RefusedError: When it is unknown, ambiguous with something that is not allowed, or not allowed.
    """
    if "." in name:
        named = resolve(name)
    else:
        modules = _short_names().get(name, ())
        if not modules:
            raise RefusedError(f"'{name}' is no class or function of MONAI; others need their full name")
        candidates = [resolve(f"{module}.{name}") for module in modules]  # MONAI takes one of them: all must be allowed
        named = candidates[0]
    if named.rest or not callable(named.value):
        raise RefusedError(f"'{name}' is no class or function of a module")
    return named


@functools.lru_cache(maxsize=4096)
def resolve(name: str) -> Named:
    """Find what a dotted name stands for, and where that is really defined.

    Modules are imported only inside the allowed packages. ``monai.transforms.io.array.os.system`` is therefore refused
    at ``os``, and a class that a module merely imported is judged by its own module.

    Raises:
        RefusedError: With the reason.
    """
    parts = name.split(".")
    for part in parts:
        if not part.isidentifier() or part.startswith("_"):
            raise RefusedError(f"'{name}' holds '{part}': private names are not allowed")
    module, count = _module(parts)
    if count == len(parts):
        raise RefusedError(f"'{name}' is a module; only its classes and functions can be used")
    inside, first = ".".join(parts[:count]), parts[count]
    value = getattr(module, first, None)
    if value is None and not hasattr(module, first):
        raise RefusedError(f"'{name}' can't be found")
    if isinstance(value, ModuleType):
        raise RefusedError(f"'{name}' goes through the module '{value.__name__}'")
    single = SINGLE.get(inside, frozenset())
    if first in single or "*" in single:
        return Named(value, f"{inside}.{first}", tuple(parts[count + 1 :]))
    return Named(value, _defined(name, value), tuple(parts[count + 1 :]))


def _defined(name: str, value: Any) -> str:
    """Return where a class or function is defined, if that is an allowed place."""
    if not inspect.isclass(value) and not inspect.isfunction(value):
        raise RefusedError(f"'{name}' is not on the list of allowed names")
    home, qualified = str(value.__module__), str(value.__qualname__)
    canonical = f"{home}.{qualified}"
    if "." in qualified or getattr(sys.modules.get(home), qualified, None) is not value:
        raise RefusedError(f"'{name}' is not defined under its own name")
    if _listed(value):
        return canonical
    if not _within(home, AREAS) or _within(canonical, DENIED):
        raise RefusedError(f"'{name}' is {canonical}, which is not on the list of allowed names")
    if inspect.isfunction(value) and not _within(home, FUNCTIONS):
        raise RefusedError(f"'{name}' is the function {canonical}, which is not on the list of allowed names")
    if inspect.isfunction(value) and home.startswith("monai_rrr.") and qualified.startswith(("write_", "generate_")):
        raise RefusedError(f"'{name}' writes files")
    return canonical


def _module(parts: list[str]) -> tuple[ModuleType, int]:
    """Return the longest prefix that is an allowed module, and how many parts it has."""
    module: ModuleType | None = None
    count = 0
    for end in range(1, len(parts)):
        name = ".".join(parts[:end])
        if not is_open(name):
            break
        try:
            found = sys.modules.get(name) or importlib.import_module(name)
        except ImportError:
            break
        module, count = found, end
    if module is None:
        raise RefusedError(f"'{'.'.join(parts)}' is outside the allowed packages")
    if ".".join(parts) in sys.modules and isinstance(sys.modules[".".join(parts)], ModuleType):
        return module, len(parts)
    return module, count


def is_open(module: str) -> bool:
    """Tell whether a module is an allowed one or contains one; what is used of it is checked by its full name."""
    if _within(module, DENIED):
        return False
    places = (*AREAS, *SINGLE)
    return _within(module, AREAS) or any(name == module or name.startswith(f"{module}.") for name in places)


def _within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _listed(value: Any) -> bool:
    """Tell whether a single name on the list stands for the same object, which then may also be named by its module."""
    places = (module for module, names in SINGLE.items() if value.__name__ in names)
    return any(getattr(sys.modules.get(module), value.__name__, None) is value for module in places)


def _parameters(value: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):  # some builtins have none
        return {}
    return {name: parameter.default for name, parameter in parameters.items()}


@functools.lru_cache(maxsize=1)
def _short_names() -> dict[str, tuple[str, ...]]:
    """Modules by the short names of what they define, from the table that MONAI itself uses, for MONAI's own names."""
    import monai.bundle

    locator = monai.bundle.ComponentLocator()
    locator.get_component_module_name("")
    table = locator._components_table or {}
    return {name: tuple(modules) for name, modules in table.items() if any(_within(one, ("monai",)) for one in modules)}
