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

"""Read a network into steps by symbolic tracing."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from monai_rrr.attribution.lrp_graph import NetworkGraph, Ref, Step

__all__ = ["read_network"]

PASSIVE: frozenset[Any] = frozenset({"size", "dim", "ndimension", "numel", getattr})
NONNEGATIVE: frozenset[Any] = frozenset(
    {nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Softplus, nn.Hardsigmoid, F.relu, torch.relu, "relu", torch.sigmoid, F.relu6}
)
KEEP_SIGN: tuple[Any, ...] = (
    *(nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.Flatten, nn.LeakyReLU, nn.PReLU),
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd),
    *(nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd),
)
KEEP_SIGN_CALLS: tuple[Any, ...] = (torch.cat, torch.flatten, "view", "reshape", "flatten", "mean", "contiguous")
SUMS: tuple[Any, ...] = (operator.add, torch.add)
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
FOLDED_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)


def read_network(network: nn.Module, find_rule: Callable[[Any], Any]) -> NetworkGraph:
    """Trace a network symbolically into steps, and check that each has a relevance rule.

    The mechanism is ``torch.fx``: calls of modules stay calls of modules, so that the relevance pass finds the
    network's own ``Parameter`` objects by name each time it runs, and the list is plain data that copies and compiles.
    Hooks or rules per module alone would not see the sums, concatenations and reshapes between modules;
    ``torch.export`` takes modules apart into operators, and is bound to one shape and one mode. The price: a network
    whose control flow depends on values or shapes can't be read; a rule for the module in question makes it one step.

    Args:
        network: takes one image and returns one tensor; other arguments of ``forward`` keep their defaults.
        find_rule: relevance rule of a module class, function or method name, or ``None``.

    Raises:
        ValueError: When the network can't be traced, or a layer has no rule; names the layer.
    """
    nodes = _used(_Tracer(find_rule).read(network))
    if any(node.op == "placeholder" for node in nodes[1:]):
        raise ValueError(f"{type(network).__name__}.forward must take one image, other arguments need a default")
    index = {node: position for position, node in enumerate(nodes)}
    modules = dict(network.named_modules())
    steps: list[Step] = []
    for node in nodes[:-1]:
        steps.append(_step(node, index, modules, steps))
    output = nodes[-1].args[0]
    if not isinstance(output, fx.Node):
        raise ValueError(f"{type(network).__name__} must return one tensor, got {type(output).__name__}")
    graph = _placed(NetworkGraph(tuple(steps), index[output]), modules)
    return _with_rules(graph, modules, find_rule)


def _used(graph: fx.Graph) -> list[fx.Node]:
    """The image and all nodes that the output depends on."""
    nodes = list(graph.nodes)
    used = {nodes[0], nodes[-1]}
    for node in reversed(nodes):
        if node in used:
            used.update(node.all_input_nodes)
    return [node for node in nodes if node in used]


class _Tracer(fx.Tracer):
    def __init__(self, find_rule: Callable[[Any], Any]) -> None:
        super().__init__()
        self.find_rule = find_rule
        self.failed = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.find_rule(type(m)) is not None or bool(super().is_leaf_module(m, module_qualified_name))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise

    def read(self, network: nn.Module) -> fx.Graph:
        parameters = list(inspect.signature(network.forward).parameters.values())
        rest = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
        try:
            return self.trace(network, rest)
        except Exception as error:  # tracing runs the network's own code, which may raise anything
            where = f"layer '{self.failed}' of {type(network).__name__}" if self.failed else type(network).__name__
            kind = type(network.get_submodule(self.failed)).__name__
            raise ValueError(
                f"{where} can't be read as a graph ({error}): give a rule for it, layer_rules={{{kind}: rule}}"
            ) from error


def _step(node: fx.Node, index: Mapping[fx.Node, int], modules: Mapping[str, nn.Module], steps: list[Step]) -> Step:
    position = index[node]
    if node.op == "placeholder":
        return Step(position, str(node.target), "image", str(node.target))
    if node.op == "get_attr":
        return Step(position, str(node.target), "attribute", str(node.target), passive=True)
    kind = {"call_module": "module", "call_function": "function", "call_method": "method"}[node.op]
    target = operator.add if node.target is operator.iadd else node.target
    args = _converted(node.args, index)
    kwargs = {name: _converted(value, index) for name, value in node.kwargs.items() if name != "inplace"}
    name = str(target) if isinstance(target, str) else getattr(target, "__name__", str(target))
    step = Step(position, name, kind, target, args, kwargs)
    parents = [steps[i] for i in step.inputs]
    key: Any = type(modules[str(target)]) if kind == "module" else target
    active = [parent for parent in parents if not parent.passive]
    return replace(
        step,
        passive=key in PASSIVE or not active,
        nonnegative=key in NONNEGATIVE or (_keeps_sign(key, len(active)) and all(p.nonnegative for p in active)),
    )


def _keeps_sign(key: Any, count: int) -> bool:
    if isinstance(key, type):
        return issubclass(key, KEEP_SIGN)
    # a constant summand may be negative
    return key in KEEP_SIGN_CALLS or (key in SUMS and count == 2)


def _converted(argument: Any, index: Mapping[fx.Node, int]) -> Any:
    if isinstance(argument, fx.Node):
        return Ref(index[argument])
    if isinstance(argument, (tuple, list)):
        return tuple(_converted(item, index) for item in argument)
    return argument


def _placed(graph: NetworkGraph, modules: Mapping[str, nn.Module]) -> NetworkGraph:
    """Mark first and last layers, and the normalizations that are folded."""
    steps = list(graph.steps)
    weighted = [step.kind == "module" and isinstance(modules[step.target], WEIGHTED) for step in steps]
    users: list[list[int]] = [[] for _ in steps]
    seen, followed = [False] * len(steps), [False] * len(steps)
    for step in steps:
        seen[step.index] = any(seen[i] or weighted[i] for i in step.inputs)
        for i in step.inputs:
            users[i].append(step.index)
    for step in reversed(steps):
        followed[step.index] = any(followed[i] or weighted[i] for i in users[step.index])
    for step in graph.steps:
        if not weighted[step.index]:
            continue
        linear = isinstance(modules[step.target], nn.Linear)
        reader = steps[users[step.index][0]] if len(users[step.index]) == 1 and not linear else None
        folds = reader is not None and reader.kind == "module" and isinstance(modules[reader.target], FOLDED_NORMS)
        if reader is not None and folds:
            steps[reader.index] = replace(reader, folded=True)
        steps[step.index] = replace(
            step,
            first=not seen[step.index],
            last=linear or not followed[step.index],
            norm=reader.index if reader is not None and folds else None,
        )
    return replace(graph, steps=tuple(steps))


def _with_rules(graph: NetworkGraph, modules: Mapping[str, nn.Module], find_rule: Callable[[Any], Any]) -> NetworkGraph:
    steps, needed = list(graph.steps), {graph.output}
    for step in reversed(graph.steps):
        if step.index not in needed or step.passive or step.kind == "image":
            continue
        needed.update(step.inputs)
        kind = type(modules[step.target]) if step.kind == "module" else None
        rule = find_rule(step.target if kind is None else kind)
        if rule is None and kind is not None:
            raise ValueError(
                f"no relevance rule for layer '{step.name}' ({kind.__name__}): "
                f"pass layer_rules={{{kind.__name__}: rule}}"
            )
        if rule is None:
            what = "tensor method" if step.kind == "method" else "function"
            raise ValueError(
                f"no relevance rule for {what} '{step.name}': pass layer_rules with it as key, or a rule for the "
                "module that calls it"
            )
        steps[step.index] = replace(step, rule=rule)
    return replace(graph, steps=tuple(steps))
