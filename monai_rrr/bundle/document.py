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

"""Reading a configuration as plain data: bounded, without doubled keys, and without anything that could run."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from monai_rrr.errors import ConfigError

__all__ = ["SUFFIXES", "read_document", "walk"]

SUFFIXES = (".json", ".yaml", ".yml")

_LARGEST = 1 << 20
_DEEPEST = 40
_MOST = 100_000


def read_document(path: str | Path) -> dict[Any, Any]:
    """Read a JSON or YAML file that holds one mapping of plain values.

    Refused are: other encodings than UTF-8, more than 1 MiB, a key that occurs twice (its first value would silently
    be lost), tags and kinds of YAML beyond those of JSON, more than 40 levels, and more than 100 000 values, where an
    alias counts as often as it is used.

    Args:
        path: file with one of the endings ``.json``, ``.yaml``, ``.yml``.

    Raises:
        ConfigError: ``config-unreadable``, with the file and the reason.
    """
    path = Path(path)
    try:
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"expected a name that ends in {', '.join(SUFFIXES)}")
        size = path.stat().st_size
        if size > _LARGEST:
            raise ValueError(f"expected at most {_LARGEST} bytes, got {size}")
        text = path.read_bytes().decode("utf-8")
        content = _json(text) if path.suffix.lower() == ".json" else _PlainLoader(text).get_single_data()
        if not isinstance(content, dict):
            raise ValueError(f"expected a mapping, got {type(content).__name__}")
        for _ in walk(content):
            pass
    except RecursionError as error:
        raise ConfigError("config-unreadable", "expected a YAML or JSON config with fewer levels", path=path) from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        message = f"expected a YAML or JSON config, got {type(error).__name__}: {error}"
        raise ConfigError("config-unreadable", message, path=path) from error
    return content


def walk(content: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every value with its path of keys, parents first, each use of an alias anew.

    Raises:
        ValueError: When it is too deep, too large, or holds other kinds than those of JSON.
    """
    count = 0
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while waiting:
        keys, value = waiting.pop()
        count += 1
        if count > _MOST:
            raise ValueError(f"expected at most {_MOST} values")
        if len(keys) > _DEEPEST:
            raise ValueError(f"expected at most {_DEEPEST} levels")
        if not isinstance(value, (str, int, float, dict, list, tuple, type(None))):
            raise ValueError(f"expected plain values, got {type(value).__name__} at {'/'.join(map(str, keys))}")
        yield keys, value
        if isinstance(value, dict):
            waiting += [((*keys, key), item) for key, item in reversed(value.items())]
        elif isinstance(value, (list, tuple)):
            waiting += [((*keys, index), item) for index, item in reversed(list(enumerate(value)))]


def _json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"key {key!r} occurs twice")
            found[key] = value
        return found

    return json.loads(text, object_pairs_hook=unique)


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads as MONAI's loader does, but a key that occurs twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        found: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in found:
                raise ValueError(f"key {key!r} occurs twice, line {key_node.start_mark.line + 1}")
            found.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping
