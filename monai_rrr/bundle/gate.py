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

"""The gate: checks all that a bundle would run, before MONAI's parser sees any of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_rrr.bundle import folder as files
from monai_rrr.bundle.document import SUFFIXES, read_document, walk
from monai_rrr.bundle.expression import PRELOADED, check_constant, check_expression, imported, is_import, last_text
from monai_rrr.bundle.names import Named, RefusedError, resolve_target
from monai_rrr.bundle.policy import ENDINGS, LOCATED
from monai_rrr.errors import ConfigError, DataError
from monai_rrr.utils.files import contained

__all__ = ["Refusal", "check_bundle", "check_content", "check_network", "import_names", "pass_gate"]

METADATA = "metadata.json"
COMMAND_LINE = "command line"

_KEY = re.compile(r"\+?[\w .\-/]+((::|#)[\w .\-/]+)*")
_PLAIN_KEY = re.compile(r"\w+((::|#)\w+)*")
_RELATIVE = re.compile(r"[@%](::|#)")
_TARGET = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")
_MODES = ("default", "callable")
_NETWORKS = ("monai.networks.", "monai_rrr.networks.", "torch.nn.")


@dataclass(frozen=True)
class Refusal:
    """One value that is refused: where it stands, and why.

    Args:
        file: as it is called in the bundle.
        key: path of keys, as a JSON pointer.
        reason: what is wrong.
        final: whether trust in the bundle's hash does not change it, such as weights with another hash.
    """

    file: str
    key: str
    reason: str
    final: bool = False

    def __str__(self) -> str:
        return f"{self.file} {self.key}: {self.reason}" if self.key else f"{self.file}: {self.reason}"


def pass_gate(
    folder: str | Path,
    configs: Sequence[str | Path],
    overrides: Mapping[str, Any] | None = None,
    trust: str | None = None,
    base: str | Path | None = None,
) -> None:
    """Refuse a bundle whose configurations could run anything that is not on the allow-list.

    Args:
        folder: of the bundle.
        configs: configuration files in the order in which MONAI merges them.
        overrides: values by key, as on the command line.
        trust: content hash (:func:`monai_rrr.bundle.content_hash`) of a bundle that was reviewed: lets its code through
            as long as nothing in it changed.
        base: folder in which MONAI will run, from which it reads the files of macros; the current one by default.

    Raises:
        ConfigError: ``bundle-refused``, which lists every refusal with file and key; ``bundle-hash``, when the bundle
            is not the one that is trusted.
    """
    home = Path(folder)
    refusals = check_bundle(home, configs, overrides, base)
    if not refusals and trust is None:
        return
    found = files.content_hash(home)
    if trust is not None and trust.lower() != found:
        message = f"expected the content hash {trust}, got {found}"
        hint = "the bundle is not the one that was reviewed: review it again"
        raise ConfigError("bundle-hash", message, path=home, hint=hint)
    left = [refusal for refusal in refusals if refusal.final or trust is None]
    if not left:
        return
    lines = "".join(f"\n  - {refusal}" for refusal in left)
    hint = f"only if you reviewed every file of the bundle: --trust {found}"
    if all(refusal.final for refusal in left):
        hint = "take the bundle from its source again"
    raise ConfigError("bundle-refused", f"{len(left)} refused:{lines}\n", path=home, hint=hint)


def check_bundle(
    folder: str | Path,
    configs: Sequence[str | Path],
    overrides: Mapping[str, Any] | None = None,
    base: str | Path | None = None,
) -> list[Refusal]:
    """Return everything that the gate refuses in a bundle; nothing is evaluated, built or unpacked.

    Checked are the folder (code, links, logging configuration, weights), its metadata, the configurations, files that
    their macros read, overrides, and, when all these pass, what merging makes of them.

    Args:
        folder: of the bundle.
        configs: configuration files in the order in which MONAI merges them.
        overrides: values by key.
        base: folder from which MONAI reads the files of macros; the current one by default.
    """
    home = Path(folder)
    metadata = home / "configs" / METADATA
    documents, found = _read_all(home, [*([metadata] if metadata.is_file() else []), *map(Path, configs)], base)
    refusals = _check_folder(home) + found
    if configs and Path(configs[0]).resolve().parent != (home / "configs").resolve():
        reason = "expected the first configuration in the bundle's configs: MONAI takes all else from its folder"
        refusals.append(Refusal(_name(Path(configs[0]), home), "", reason, final=True))
    if overrides:
        documents[COMMAND_LINE] = dict(overrides)
        refusals += [fault for fault, _ in _macro_files(COMMAND_LINE, documents[COMMAND_LINE], home, base) if fault]
    aliases, found = import_names(documents)
    refusals += found
    for name, content in documents.items():
        refusals += check_content(content, name, aliases, data=name == _name(metadata, home))
    if not refusals:
        refusals += _check_merged(list(map(Path, configs)), overrides, aliases)
    return refusals


def check_content(
    content: Mapping[Any, Any], file: str, aliases: Mapping[str, str] | None = None, *, data: bool = False
) -> list[Refusal]:
    """Return everything that the gate refuses in a configuration that was read.

    Args:
        content: plain values.
        file: name for the refusals.
        aliases: dotted name by name that the import statements of all configurations bind; None: those of this one.
        data: it only describes, as metadata do: it may hold addresses and any keys.
    """
    if aliases is None:
        aliases, refusals = import_names({file: content})
    else:
        refusals = []
    try:
        for keys, value in walk(content):
            for reason in _faults(keys, value, aliases, data):
                refusals.append(Refusal(file, _pointer(keys), reason))
    except ValueError as error:
        refusals.append(Refusal(file, "", str(error), final=True))
    return refusals


def check_network(content: Mapping[Any, Any], file: str) -> list[Refusal]:
    """Return what is refused in entries that define a network: expressions, macros, and all targets but networks.

    Args:
        content: the entries.
        file: name for the refusals.
    """
    refusals = []
    for keys, value in _walk_bounded(content):
        if not isinstance(value, str):
            continue
        if value.startswith(("$", "%")):
            refusals.append(Refusal(file, _pointer(keys), f"'{value}' is an expression or a macro"))
        elif keys[-1] == "_target_":
            try:
                if not resolve_target(value).canonical.startswith(_NETWORKS):
                    refusals.append(Refusal(file, _pointer(keys), f"'{value}' is no network"))
            except RefusedError:  # named by check_content
                pass
    named = {refusal.key for refusal in refusals}
    return refusals + [refusal for refusal in check_content(content, file) if refusal.key not in named]


def import_names(documents: Mapping[str, Mapping[Any, Any]]) -> tuple[dict[str, str], list[Refusal]]:
    """Return the dotted name by name that import statements bind, and those statements that are refused."""
    aliases: dict[str, str] = {}
    refusals = []
    for file, content in documents.items():
        for keys, value in _walk_bounded(content):
            if not isinstance(value, str) or not value.startswith("$") or not is_import(value):
                continue
            try:
                if len(keys) > 2 or keys[0] not in ("imports", "+imports"):
                    raise RefusedError("import statements belong into the list 'imports'")
                name, dotted = imported(value)
                if {**PRELOADED, **aliases}.get(name, dotted) != dotted:
                    raise RefusedError(f"the name '{name}' already stands for something else")
                aliases[name] = dotted
            except RefusedError as error:
                refusals.append(Refusal(file, _pointer(keys), str(error)))
    return aliases, refusals


def _read_all(
    home: Path, waiting: list[Path], base: str | Path | None
) -> tuple[dict[str, dict[Any, Any]], list[Refusal]]:
    """Read configurations and the files that their macros name."""
    documents: dict[str, dict[Any, Any]] = {}
    refusals = []
    while waiting:
        path = waiting.pop(0)
        name = _name(path, home)
        if name in documents:
            continue
        try:
            documents[name] = read_document(path)
        except ConfigError as error:
            refusals.append(Refusal(name, "", error.message, final=True))
            continue
        for fault, target in _macro_files(name, documents[name], home, base):
            refusals += [fault] if fault else []
            waiting += [target] if target else []
    return documents, refusals


def _check_folder(home: Path) -> list[Refusal]:
    refusals = [Refusal(_name(path, home), "", reason) for path, reason in files.code_files(home)]
    refusals += [Refusal(_name(path, home), "", reason, final=True) for path, reason in files.foreign_links(home)]
    for error in files.weight_faults(home):
        # weights that no manifest lists are part of the content hash, which can then be trusted
        final = error.code != "manifest-missing"
        refusals.append(Refusal(_name(Path(error.path or home), home), "", error.message, final))
    logging = home / "configs" / "logging.conf"
    if logging.is_file():
        refusals += [Refusal(_name(logging, home), f"/{key}", why) for key, why in files.logging_faults(logging)]
    return refusals


def _check_merged(
    configs: Sequence[Path], overrides: Mapping[str, Any] | None, aliases: Mapping[str, str]
) -> list[Refusal]:
    """Check what merging makes of the files: an overlay may change one argument of a component in another file."""
    name = f"merged {', '.join(path.name for path in configs)}"
    try:
        parser = ConfigParser(ConfigParser.load_config_files([str(path) for path in configs]), globals=False)
        parser.update(dict(overrides or {}))
        merged = parser.get()
    except Exception as error:  # MONAI has no common error for overlays and overrides that do not fit
        return [Refusal(name, "", f"they can't be merged: {type(error).__name__}: {error}", final=True)]
    return check_content(merged, name, aliases)


def _faults(keys: tuple[Any, ...], value: Any, aliases: Mapping[str, str], data: bool) -> Iterable[str]:
    """Yield the reasons to refuse one value."""
    try:
        last = re.split("::|#", str(keys[-1]))[-1] if keys else ""
        if keys and isinstance(keys[-1], str) and not data and not _KEY.fullmatch(keys[-1]):
            raise RefusedError("a key holds other signs than letters, digits, '_', '-', '.', '/' and spaces")
        if last == "_target_":
            if not isinstance(value, str) or not _TARGET.fullmatch(value):
                raise RefusedError(f"expected the name of a class or function, got {value!r}")
            resolve_target(value)
        elif last == "_mode_" and value not in _MODES:
            raise RefusedError(f"expected one of {', '.join(_MODES)}, got {value!r}")
        elif last == "_debug_" and value:
            raise RefusedError("it starts a debugger")
        elif isinstance(value, dict):
            if keys and str(keys[-1]).startswith("+"):
                raise RefusedError("'+' merges lists only; name the entries of a mapping one by one")
            if "_target_" in value:
                yield from _component_faults(value)
        elif isinstance(value, str):
            if (
                value.startswith("$")
                and _RELATIVE.search(value)
                and not all(_PLAIN_KEY.fullmatch(str(k)) for k in keys)
            ):
                raise RefusedError("a relative reference under keys with other signs than letters, digits and '_'")
            _check_text(value, aliases, data)
    except RefusedError as error:
        yield str(error)


def _check_text(text: str, aliases: Mapping[str, str], data: bool) -> None:
    if text.startswith("$"):
        if data:
            raise RefusedError("expected a description, got an expression")
        if not is_import(text):  # import statements are checked before all else
            check_expression(text, aliases)
    elif text.startswith("%") or re.fullmatch(r"@(\w|::|#)*", text):
        _check_reference(text)
    elif not data:
        check_constant(text)


def _check_reference(text: str) -> None:
    """Refuse what stands for imported modules, or for a whole configuration, which holds them."""
    identity = ConfigParser.split_path_id(text[1:])[1] if text.startswith("%") else text[1:].replace("#", "::")
    parts = identity.split("::")
    if "imports" in parts:
        raise RefusedError(f"'{text}' refers to imports")
    if not parts[-1]:
        raise RefusedError(
            f"'{text}' refers to a whole configuration; name an entry, as in '{text[0]}file.json::entry'"
        )


def _component_faults(component: Mapping[Any, Any]) -> Iterable[str]:
    """Yield what is wrong with the arguments of a component; its ``_target_`` is a value of its own."""
    target = component["_target_"]
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        return
    try:
        named = resolve_target(target)
    except RefusedError:
        return
    if named.restricted and component.get("_mode_", "default") != "default":
        yield f"'{named.canonical}' can't be handed on as a callable"
    given = {str(key): value for key, value in component.items() if not str(key).startswith("_")}
    for name in {**named.restricted, **given}:
        reason = _argument_fault(named, name, given.get(name, named.restricted.get(name)))
        if reason:
            yield reason


def _argument_fault(named: Named, name: str, value: Any) -> str:
    if name in named.files:
        text = last_text(value) if isinstance(value, str) else None
        if value is None or isinstance(value, type):  # the default
            return ""
        return "" if text is not None and text.endswith(ENDINGS) else f"'{name}' must end in {', '.join(ENDINGS)}"
    allowed = named.allowed(name)
    if allowed is None or isinstance(value, type):
        return ""
    values = value if isinstance(value, (list, tuple)) and name in LOCATED else [value]
    for item in values:
        if item is None and name in LOCATED:
            continue
        if isinstance(item, dict) and "_target_" in item:  # checked as a component of its own
            continue
        if not any(item is one or (isinstance(one, str) and item == one) for one in allowed):
            return f"'{name}' must be {' or '.join(repr(one) for one in allowed)}, got {item!r}"
    return ""


def _macro_files(
    name: str, content: Mapping[Any, Any], home: Path, base: str | Path | None
) -> Iterable[tuple[Refusal | None, Path | None]]:
    """Yield what is wrong with a macro that reads a file, or else the file."""
    for keys, value in _walk_bounded(content):
        if not isinstance(value, str) or not value.startswith("%"):
            continue
        path, _ = ConfigParser.split_path_id(value[1:])
        if not path:
            continue
        try:
            target = contained(home, Path(base or Path.cwd(), path).resolve())
            if path.startswith("::") or not target.is_file() or target.suffix.lower() not in SUFFIXES:
                yield Refusal(name, _pointer(keys), f"'{value}' names no configuration in the bundle"), None
            else:
                yield None, target
        except (DataError, OSError, ValueError):
            reason = f"'{value}' leads out of the bundle (macros are read from the folder where MONAI runs)"
            yield Refusal(name, _pointer(keys), reason), None


def _walk_bounded(content: Mapping[Any, Any]) -> Iterable[tuple[tuple[Any, ...], Any]]:
    try:
        yield from walk(content)
    except ValueError:  # reported once, by check_content
        return


def _name(path: Path, home: Path) -> str:
    for file, folder in ((path, home), (path.resolve(), home.resolve())):
        if file.is_relative_to(folder):
            return file.relative_to(folder).as_posix()
    return str(path)


def _pointer(keys: Sequence[Any]) -> str:
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)
