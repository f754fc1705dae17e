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

"""A network as a list of steps, which relevance walks backwards."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["NetworkGraph", "Ref", "Step", "resolve"]


@dataclass(frozen=True)
class Ref:
    """The value of an earlier step, as an argument."""

    index: int


@dataclass(frozen=True)
class Step:
    """One call of the forward pass.

    Args:
        index: position in the list of steps.
        name: dotted name of the module, or name of the function.
        kind: ``"image"``, ``"module"``, ``"function"``, ``"method"`` or ``"attribute"``.
        target: dotted name of the module or attribute, the function, or the name of the tensor method.
        args: positional arguments; earlier values are :class:`Ref`.
        kwargs: keyword arguments.
        passive: yields no tensor of features (a size, a parameter): it takes no relevance.
        nonnegative: the value can't be negative, known from the kinds of layers alone.
        first: a layer with weights that sees the image through no other one.
        last: a ``Linear`` layer, or one with weights that no other one follows.
        norm: index of the normalization that alone reads this layer, and is folded into it.
        folded: this is such a normalization.
        rule: relevance rule of this kind of layer or function; ``None`` where no relevance comes by.
    """

    index: int
    name: str
    kind: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    passive: bool = False
    nonnegative: bool = False
    first: bool = False
    last: bool = False
    norm: int | None = None
    folded: bool = False
    rule: Callable[..., Any] | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the values that this step reads, in the order of its arguments."""
        return tuple(_refs((self.args, tuple(self.kwargs.values()))))


@dataclass(frozen=True)
class NetworkGraph:
    """The steps of a network, in the order of execution.

    Args:
        steps: all steps; modules are named, not held: whoever runs the steps says in which network to look them up.
        output: index of the step whose value is the output.
    """

    steps: tuple[Step, ...]
    output: int

    def run(self, network: nn.Module, image: Tensor) -> list[Any]:
        """Call the network step by step and return the value of every step.

        The output is that of ``network(image)``: modules are called as they are, with their own hooks and modes; those
        that overwrite their input work on a copy.
        """
        values: list[Any] = []
        for step in self.steps:
            if step.kind == "image":
                values.append(image)
                continue
            if step.kind == "attribute":
                values.append(operator.attrgetter(step.target)(network))
                continue
            args, kwargs = resolve(step.args, values), resolve(dict(step.kwargs), values)
            if step.kind == "module":
                module = network.get_submodule(step.target)
                if getattr(module, "inplace", False):
                    args = (args[0].clone(), *args[1:])
                values.append(module(*args, **kwargs))
            elif step.kind == "method":
                values.append(getattr(args[0], step.target)(*args[1:], **kwargs))
            else:
                values.append(step.target(*args, **kwargs))
        return values


def resolve(argument: Any, values: Sequence[Any]) -> Any:
    """Replace every :class:`Ref` in nested arguments by its value."""
    if isinstance(argument, Ref):
        return values[argument.index]
    if isinstance(argument, (tuple, list)):
        return type(argument)(resolve(item, values) for item in argument)
    if isinstance(argument, dict):
        return {key: resolve(item, values) for key, item in argument.items()}
    return argument


def _refs(argument: Any) -> Iterator[int]:
    if isinstance(argument, Ref):
        yield argument.index
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from _refs(item)
