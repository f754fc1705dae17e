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

"""Which ``$`` expressions a configuration may hold: names, calls and arithmetic that an allow-list knows."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from monai.bundle.reference_resolver import ReferenceResolver

from monai_rrr.bundle.names import Named, RefusedError, is_open, resolve
from monai_rrr.bundle.policy import BUILTINS, LOCATED, MEMBERS, SETTABLE, SWITCHES

__all__ = ["PRELOADED", "check_constant", "check_expression", "imported", "is_import", "last_text"]

PRELOADED = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}  # what MONAI gives to expressions

_LONGEST = 2000
_REFERENCES = "__local_refs"  # MONAI's name for what references stand for
_CODE_FILES = re.compile(r"\.(py[cdow]?|so|dll|pkl|pickle|joblib|dill|npy|npz|ts|pt2|pte)\s*$", re.IGNORECASE)
_ADDRESS = re.compile(r"^\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LOCAL_ADDRESSES = ("env://",)
_PLAIN = (
    *(ast.Constant, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Slice, ast.Starred, ast.BinOp, ast.UnaryOp, ast.BoolOp),
    *(ast.Compare, ast.IfExp, ast.Subscript, ast.JoinedStr, ast.FormattedValue, ast.operator, ast.unaryop, ast.boolop),
    *(ast.cmpop, ast.expr_context, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.Name),
    *(ast.Attribute, ast.Call, ast.keyword, ast.comprehension, ast.arguments, ast.arg),
)


class _Everything(dict[str, Any]):
    """Stands for references to anything, so that MONAI's own substitution gives the code that it will evaluate."""

    def __contains__(self, key: object) -> bool:
        return True


def is_import(text: str) -> bool:
    """Tell whether MONAI takes an expression for an import statement."""
    if "import" not in text:
        return False
    try:
        body = ast.parse(_normal(text)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return bool(body) and isinstance(body[0], (ast.Import, ast.ImportFrom))


def imported(text: str) -> tuple[str, str]:
    """Return (name, dotted name) that an import statement binds.

    Raises:
        RefusedError: When it imports something that is not allowed.
    """
    body = ast.parse(_normal(text)).body
    statement = body[0]
    if len(body) != 1 or not isinstance(statement, (ast.Import, ast.ImportFrom)) or len(statement.names) != 1:
        raise RefusedError("expected one import of one name")
    alias = statement.names[0]
    if (alias.asname or alias.name).startswith("_"):
        raise RefusedError(f"'{alias.asname or alias.name}' is a private name")
    if isinstance(statement, ast.Import):
        if not is_open(alias.name):
            raise RefusedError(f"the module '{alias.name}' is not on the list of allowed modules")
        return alias.asname or alias.name, alias.name
    if statement.level or not statement.module:
        raise RefusedError("relative imports are not allowed")
    name = f"{statement.module}.{alias.name}"
    if not (is_open(name) and isinstance(sys.modules.get(name), ModuleType)):
        resolve(name)
    return alias.asname or alias.name, name


def _normal(text: str) -> str:
    """Return the code of an expression as MONAI reads it, which takes the old separator for the new one everywhere."""
    return text[1:].replace("#", "::")


def check_constant(text: str) -> None:
    """Refuse texts that name a file of code or pickles, or an address in a network.

    Raises:
        RefusedError: With the reason.
    """
    if _CODE_FILES.search(text):
        raise RefusedError(f"'{text[-80:]}' ends like a file of code or of pickled objects")
    if _ADDRESS.match(text) and text.strip() not in _LOCAL_ADDRESSES:
        raise RefusedError(f"'{text[:80]}' is an address in a network")


def check_expression(text: str, aliases: Mapping[str, str]) -> None:
    """Check an expression that is no import statement.

    What is checked is the code that MONAI will evaluate, after its own replacement of ``@`` references.

    Args:
        text: the expression with its ``$``.
        aliases: dotted name by name that import statements bind.

    Raises:
        RefusedError: With the reason.
    """
    try:
        _Checker({**PRELOADED, **aliases}).check(_parse(text))
    except RecursionError as error:
        raise RefusedError("it is nested too deeply") from error


def last_text(text: str) -> str | None:
    """Return the text that the value of a text or expression surely ends with; None when that can't be told."""
    if text.startswith(("@", "%")):
        return None
    if not text.startswith("$"):
        return text
    node: ast.expr = _parse(text)
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        node = node.right
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _parse(text: str) -> ast.expr:
    if len(text) > _LONGEST:
        raise RefusedError(f"expected at most {_LONGEST} characters")
    # What MONAI puts before a relative reference are keys, which are checked where they stand.
    absolute = re.sub(r"@(?:::)+", "@", text.replace("#", "::"))
    try:
        code = ReferenceResolver.update_refs_pattern(absolute, _Everything())
        return ast.parse(code[1:].lstrip(" \t"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RefusedError(f"it is no expression: {str(error)[:80]}") from error


class _Checker:
    """Walks an expression; `local` are the names that comprehensions and lambdas bind."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self.aliases = aliases
        self.local: set[str] = set()

    def check(self, tree: ast.expr) -> None:
        for node in ast.walk(tree):
            if not isinstance(node, _PLAIN):
                raise RefusedError(f"{type(node).__name__} is not allowed in expressions")
            if isinstance(node, ast.arg):
                self.local.add(node.arg)
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                self.local.add(node.id)
        hidden = sorted(name for name in self.local if name in self.aliases or name in BUILTINS or name[0] == "_")
        if hidden and hidden != ["_"]:
            raise RefusedError(f"'{hidden[-1]}' hides a name that means something else")
        self._visit(tree)

    def _visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            self._value(node)
        elif self._reference(node) is None:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                check_constant(node.value)
            for child in ast.iter_child_nodes(node):
                self._visit(child)

    def _reference(self, node: ast.AST) -> str | None:
        """Return the id of a reference to another entry, if the node is one."""
        if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == _REFERENCES):
            return None
        identity = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if not isinstance(identity, str) or not identity or "imports" in identity.split("::"):
            raise RefusedError("it refers to imports, or to everything")
        return identity

    def _value(self, node: ast.Name | ast.Attribute) -> None:
        """Check a name or a chain of attributes that is used as a value."""
        named = self._named(node)
        if named is not None:
            if named.restricted:
                raise RefusedError(f"'{named.canonical}' can only be called, or be a component of its own")
            self._attributes(named.rest)

    def _named(self, node: ast.expr) -> Named | None:
        """Return what a chain of attributes stands for, if it begins at an imported name; check it otherwise."""
        attributes: list[str] = []
        root = node
        while isinstance(root, ast.Attribute):
            attributes.insert(0, root.attr)
            root = root.value
        if isinstance(root, ast.Name) and root.id not in self.local:
            if root.id in self.aliases:
                return resolve(".".join([self.aliases[root.id], *attributes]))
            if root.id not in BUILTINS:
                raise RefusedError(f"the name '{root.id}' is not allowed")
        elif not isinstance(root, ast.Name):
            self._visit(root)
        self._attributes(attributes)
        return None

    @staticmethod
    def _attributes(names: Iterable[str]) -> None:
        for name in names:
            if name not in MEMBERS and not (name.isupper() and name[0] != "_"):
                raise RefusedError(f"the attribute '{name}' is not on the list of allowed attributes")

    def _call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "setattr":
            self._setting(node)
            return
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg == "file":
                raise RefusedError(f"'{keyword.arg or '**'}' is not allowed in calls")
            self._visit(keyword.value)
        for argument in node.args:
            self._visit(argument)
        given = {str(keyword.arg): keyword.value for keyword in node.keywords}
        named = self._named(node.func) if isinstance(node.func, (ast.Name, ast.Attribute)) else None
        if named is not None:
            self._attributes(named.rest)
            if named.files:
                raise RefusedError(f"'{named.canonical}' writes a file: it must be a component of its own")
            if named.restricted and not named.rest and node.args:
                raise RefusedError(f"'{named.canonical}' can only be called with keywords")
            for name, default in named.restricted.items():
                if name not in given and default is not inspect.Parameter.empty:
                    _check_literal(named, name, default)
        elif not isinstance(node.func, (ast.Name, ast.Attribute)) and self._reference(node.func) is None:
            raise RefusedError(f"{type(node.func).__name__} can't be called")
        elif isinstance(node.func, ast.Name) and node.func.id in self.local:
            raise RefusedError(f"'{node.func.id}' can't be called: what it is is not known")
        for name, value in given.items():
            if name in SWITCHES or name in LOCATED or (named is not None and named.allowed(name)):
                if not isinstance(value, ast.Constant):
                    raise RefusedError(f"'{name}' must be a plain value")
                _check_literal(named, name, value.value)

    def _setting(self, node: ast.Call) -> None:
        """Accept ``setattr(torch.backends.cudnn, 'benchmark', True)``, and nothing else."""
        text = [ast.unparse(argument) for argument in node.args]
        place = text[0] if text else ""
        root = self.aliases.get(place.split(".")[0], "")
        names = SETTABLE.get(".".join([root, *place.split(".")[1:]]), ())
        if len(text) != 3 or node.keywords or text[1][1:-1] not in names or text[2] not in ("True", "False"):
            raise RefusedError("setattr is not allowed here")


def _check_literal(named: Named | None, name: str, value: object) -> None:
    allowed = (named.allowed(name) if named is not None else None) or SWITCHES.get(name) or LOCATED.get(name, ())
    if value is None and name in LOCATED:
        return
    if not any(value is item or (isinstance(value, str) and value == item) for item in allowed):
        raise RefusedError(f"'{name}' must be {' or '.join(repr(item) for item in allowed)}, got {value!r}")
