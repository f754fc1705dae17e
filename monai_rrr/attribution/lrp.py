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

"""Layer-wise relevance propagation, unrolled into forward operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_rrr.attribution.attributor import check_classes, class_columns, single_precision
from monai_rrr.attribution.lrp_graph import NetworkGraph, Step, resolve
from monai_rrr.attribution.lrp_layers import LAYER_RULES, LayerCall, LayerRule, find_rule
from monai_rrr.attribution.lrp_placement import LRPRules
from monai_rrr.attribution.lrp_read import read_network
from monai_rrr.attribution.trace import Trace, unwrapped

__all__ = ["UnrolledLRP", "propagate", "read_relevance_graph"]


@dataclass(frozen=True)
class UnrolledLRP:
    r"""Relevance of every input voxel for a class logit, by rules that run backwards through the network.

    Signed, larger is more evidence; summed over the modalities, see :meth:`by_modality`. Conserving rules give maps
    whose sum is the logit. All of it is forward operations on the network's own parameters: a loss on the map has exact
    first-order gradients to all weights, no second derivative is taken, and nothing is hooked or modified.

    .. math:: R^{(L)} = z_c e_c, \qquad R^{(l)} = \mathrm{rule}_l(x^{(l)}, W_l, R^{(l+1)})

    Layers: convolutions and transposed ones (groups, dilation, any stride), Linear, batch, instance, group and layer
    normalization, the ReLU family and smooth activations, max, average and adaptive pooling, up-sampling, sums,
    concatenation, means, dropout and reshaping. A normalization right behind a convolution is folded into it; relevance
    does not flow through its statistics. Others need a rule, a function of :class:`LayerCall` and the relevance.

    Args:
        rules: which rule goes where.
        layer_rules: class of a layer, function or tensor method -> rule, beyond
            :data:`~monai_rrr.attribution.lrp_layers.LAYER_RULES`; goes before these.

    Shape:
        - class_idx: ``B`` or ``BT``.
        - output: ``BTH[WD]``, on the grid of the image, at least float32.

    Raises:
        ValueError: When the network can't be read or a layer has no rule (see
            :func:`~monai_rrr.attribution.lrp_read.read_network`), the logits are not ``BK``, or a class is out of
            range.

    Note:
        Calls the network once more, with frozen statistics; dropout draws anew.

    Reference:
        S. Bach et al., On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
        propagation, PLOS ONE 2015; X. Yu et al., Model guidance via explanations turns image classifiers into
        segmentation models, arXiv 2407.03009. Differs from the latter in: the network's own parameters instead of
        copies; normalization statistics and offsets keep their gradient; overlapping max pooling adds up.

    Example:
        >>> from monai_rrr.attribution.trace import record
        >>> class Gate(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = nn.Conv3d(4, 4, 1)
        ...     def forward(self, x):
        ...         return x * torch.sigmoid(self.conv(x))
        >>> def gate_rule(call, relevance):
        ...     return relevance  # the gated signal takes all
        >>> layers = [nn.Conv3d(2, 4, 3), nn.ReLU(), Gate(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)]
        >>> trace = record(nn.Sequential(*layers), torch.rand(1, 2, 8, 8, 8), [])
        >>> UnrolledLRP(layer_rules={Gate: gate_rule})(trace, torch.tensor([[0, 2]])).shape
        torch.Size([1, 2, 8, 8, 8])
    """

    rules: LRPRules = LRPRules()  # noqa: RUF009  (frozen)
    layer_rules: Mapping[Any, LayerRule] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """Nothing must be recorded."""
        return ()

    def __call__(self, trace: Trace, class_idx: Tensor) -> Tensor:
        """Return the relevance of the requested classes."""
        return self.by_modality(trace, class_idx).sum(2)

    def by_modality(self, trace: Trace, class_idx: Tensor) -> Tensor:
        """Return the relevance ``BTMH[WD]`` of every modality."""
        if trace.forward_kwargs:
            raise ValueError(f"LRP reads networks of one image, got further arguments {sorted(trace.forward_kwargs)}")
        network = unwrapped(trace.network)
        graph = read_relevance_graph(network, self.layer_rules)
        buffers = {f"network.{name}": buffer.clone() for name, buffer in network.named_buffers()}
        values = torch.func.functional_call(_Steps(network, graph), buffers, (trace.image,))
        return propagate(graph, network, values, class_idx, self.rules)


class _Steps(nn.Module):
    """Runs the steps of a network."""

    def __init__(self, network: nn.Module, graph: NetworkGraph) -> None:
        super().__init__()
        self.network, self.graph = network, graph

    def forward(self, image: Tensor) -> list[Any]:
        return self.graph.run(self.network, image)


def read_relevance_graph(network: nn.Module, layer_rules: Mapping[Any, LayerRule] | None = None) -> NetworkGraph:
    """Read a network; see :func:`~monai_rrr.attribution.lrp_read.read_network`."""
    rules = {**LAYER_RULES, **(layer_rules or {})}
    return read_network(network, lambda key: find_rule(rules, key))


def propagate(
    graph: NetworkGraph,
    network: nn.Module,
    values: Sequence[Any],
    class_idx: Tensor,
    rules: LRPRules,
    *,
    recompute: bool = False,
    checkpointing: bool = False,
) -> Tensor:
    """Run relevance from the logits of some classes back to the image, all classes at once.

    Denominators belong to the image, not to the class: they are computed once, whatever the number of classes.

    Args:
        graph: the steps of ``network``, with the rules of its layers.
        network: where the weights are looked up.
        values: what ``graph.run`` returned.
        class_idx: ``B`` or ``BT``.
        rules: which rule goes where.
        recompute: compute the outputs of layers with weights again, because ``network`` is not the one that gave
            ``values``.
        checkpointing: of a layer keep the relevance that reaches it only, and apply its rule again in ``backward``.

    Returns:
        ``BTMH[WD]``.
    """
    logits = values[graph.output]
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"LRP needs a network with logits of shape B K, got {got}")
    columns = class_columns(class_idx, logits.shape[0])
    check_classes(columns, logits.shape[1])
    with torch.autocast(logits.device.type, enabled=False):
        logits = single_precision(logits)
        start = (columns.T[..., None] == torch.arange(logits.shape[1], device=logits.device)) * logits
        pending: dict[int, Tensor] = {graph.output: start}
        for step in reversed(graph.steps[1:]):
            relevance = pending.pop(step.index, None)
            if relevance is None or step.rule is None:
                continue
            call = _call(graph, step, network, values, rules, recompute)
            shares: Tensor | tuple[Tensor, ...]
            if step.folded:
                shares = relevance
            elif checkpointing and torch.is_grad_enabled():
                shares = checkpoint(step.rule, call, relevance, use_reentrant=False)
            else:
                shares = step.rule(call, relevance)
            parts = (shares,) if isinstance(shares, Tensor) else shares
            for index, share in zip(_active(graph, step), parts, strict=True):
                pending[index] = pending[index] + share if index in pending else share
    if 0 not in pending:
        raise ValueError("the logits do not depend on the image")
    return pending[0].transpose(0, 1)


def _active(graph: NetworkGraph, step: Step) -> tuple[int, ...]:
    return tuple(index for index in step.inputs if not graph.steps[index].passive)


def _call(
    graph: NetworkGraph, step: Step, network: nn.Module, values: Sequence[Any], rules: LRPRules, recompute: bool
) -> LayerCall:
    def precise(index: int) -> Tensor | None:
        output: Tensor = values[index]
        return None if recompute or single_precision(output).dtype != output.dtype else output

    norm = None
    if step.norm is not None:
        after = graph.steps[step.norm]
        norm = (network.get_submodule(after.target), single_precision(values[step.index]), precise(step.norm))
    return LayerCall(
        name=step.name,
        target=step.target,
        module=network.get_submodule(step.target) if step.kind == "module" else None,
        inputs=tuple(single_precision(values[index]) for index in _active(graph, step)),
        args=resolve(step.args, values),
        kwargs=resolve(dict(step.kwargs), values),
        output=precise(step.index),
        rule=rules.rule_of(step.name, step.first, step.last),
        nonnegative=all(graph.steps[index].nonnegative for index in _active(graph, step)),
        norm=norm,
    )
