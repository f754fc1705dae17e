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

"""Relevance rules of layers without weights, and the table that says which rule a layer has."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from monai.networks.blocks.activation import MemoryEfficientSwish, Swish
from monai.networks.blocks.activation import Mish as MONAIMish
from torch import Tensor, nn

from monai_rrr.attribution.lrp_linear import WeightedLayer, linear_map, normalization, stabilized_ratio
from monai_rrr.attribution.lrp_rules import Rule
from monai_rrr.attribution.lrp_separable import axis_matrices, spread

__all__ = ["LAYER_RULES", "LayerCall", "LayerRule", "find_rule"]

_EPS = 1e-9


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer or function in the forward pass, as its relevance rule sees it.

    Args:
        name: dotted name of the layer, or name of the function.
        target: dotted name of the layer, the function, or the name of the tensor method.
        module: the layer; ``None`` for a function.
        inputs: its tensors, in the order of the arguments, at least float32.
        args: all positional arguments.
        kwargs: all keyword arguments.
        output: what it returned; ``None`` when it was half precision and is not precise enough to divide by.
        rule: the rule of layers with weights at this place.
        nonnegative: no input can be negative.
        norm: normalization folded into this layer, its input and its output.
    """

    name: str
    target: Any
    module: nn.Module | None
    inputs: tuple[Tensor, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor | None
    rule: Rule
    nonnegative: bool
    norm: tuple[nn.Module, Tensor, Tensor | None] | None = None

    @property
    def x(self) -> Tensor:
        """The first input, ``B C ...``."""
        return self.inputs[0]

    def option(self, name: str, position: int, default: Any = None) -> Any:
        """Return an argument of a function by name or by position after the first one, or an attribute of a layer."""
        if self.module is not None:
            return getattr(self.module, name, default)
        return self.kwargs.get(name, self.args[position + 1] if position + 1 < len(self.args) else default)


LayerRule: TypeAlias = Callable[[LayerCall, Tensor], "Tensor | tuple[Tensor, ...]"]
"""``(call, relevance T B ... of the output) -> relevance T B ... of the input``, a tuple when there are several."""


def pass_on(call: LayerCall, relevance: Tensor) -> Tensor:
    """Hand relevance on voxel by voxel: activations, dropout, identity. Exact for the ReLU family."""
    return relevance


def reshape_back(call: LayerCall, relevance: Tensor) -> Tensor:
    """Undo a change of shape that keeps the order of the elements."""
    return relevance.reshape(relevance.shape[0], *call.x.shape)


def weighted(call: LayerCall, relevance: Tensor) -> Tensor:
    """Apply the rule of this place to a Linear layer or a convolution, with the normalization that follows it."""
    module: Any = call.module
    mapping = linear_map(module, call.name)
    weight = module.weight.to(call.x.dtype)
    bias = None if module.bias is None else module.bias.to(call.x.dtype)
    shape = (-1,) if isinstance(module, nn.Linear) else (1, -1, *(1,) * (call.x.ndim - 2))
    offset = None if bias is None else bias.reshape(shape)
    if call.norm is None:
        layer = WeightedLayer(call.x, call.nonnegative, mapping, weight, lambda: (None, offset), call.output)
        return call.rule(layer, relevance)
    norm, before, after = call.norm
    if isinstance(norm.weight, Tensor):
        weight = mapping.scale_outputs(weight, torch.where(norm.weight < 0, -1.0, 1.0).to(weight.dtype))

    def affine() -> tuple[Tensor, Tensor]:
        factor, summand = normalization(norm, before)
        return factor.abs(), summand if offset is None else factor * offset + summand

    return call.rule(WeightedLayer(call.x, call.nonnegative, mapping, weight, affine, after), relevance)


def normalized(call: LayerCall, relevance: Tensor) -> Tensor:
    """Normalization that follows no convolution: share of ``factor * x`` in its output, or pass on."""
    if not call.rule.proportional:
        return relevance
    factor, summand = normalization(call.module, call.x)
    part = factor * call.x
    return part * stabilized_ratio(relevance, part + summand, _eps(call))


def pool_max(call: LayerCall, relevance: Tensor) -> Tensor:
    """Winner takes all; windows that overlap add up."""
    module: Any = call.module
    dims = call.x.ndim - 2
    if isinstance(module, nn.modules.pooling._AdaptiveMaxPoolNd):
        pool: Any = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[dims - 1]
        _, index = pool(call.x, module.output_size, return_indices=True)
    else:
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
        window = [call.option(name, i) for i, name in enumerate(("kernel_size", "stride", "padding", "dilation"))]
        kernel, stride, padding, dilation = window
        _, index = pool(
            call.x, kernel, stride, padding or 0, dilation or 1, bool(call.option("ceil_mode", 4)), return_indices=True
        )
    index = index.flatten(2).expand(relevance.shape[0], -1, -1, -1)
    empty = torch.zeros(*relevance.shape[:3], call.x[0, 0].numel(), dtype=relevance.dtype, device=relevance.device)
    return empty.scatter_add(3, index, relevance.flatten(3)).reshape(*relevance.shape[:3], *call.x.shape[2:])


def pool_average(call: LayerCall, relevance: Tensor) -> Tensor:
    """Share by values (absolute ones where they are signed and relevance is not proportional to them).

    Average pooling and linear or nearest up-sampling are one matrix per axis.
    """
    share = call.x if call.nonnegative or call.rule.proportional else call.x.abs()
    matrices = axis_matrices(call)
    total = spread(share, matrices)
    transposed = [matrix.transpose(0, 1) for matrix in matrices]
    return share * spread(stabilized_ratio(relevance, total, _eps(call)), transposed)


def mean_share(call: LayerCall, relevance: Tensor) -> Tensor:
    """Share of each element in a mean over some axes."""
    dims = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    if dims is None:
        raise ValueError(f"'{call.name}' must average over given axes")
    keep = call.kwargs.get("keepdim", call.args[2] if len(call.args) > 2 else False)
    axes = sorted(d % call.x.ndim for d in ((dims,) if isinstance(dims, int) else dims))
    if not keep:
        for axis in axes:
            relevance = relevance.unsqueeze(axis + 1)
    share = call.x if call.nonnegative or call.rule.proportional else call.x.abs()
    return share * stabilized_ratio(relevance, share.sum(axes, keepdim=True), _eps(call))


def sum_share(call: LayerCall, relevance: Tensor) -> tuple[Tensor, ...]:
    """Share of each summand; where relevance is not proportional to the sum, by positive parts as z+ does."""
    if call.option("alpha", 1, 1) != 1:
        raise ValueError(f"'{call.name}' must add with factor alpha = 1, got {call.option('alpha', 1)}")
    if len(call.inputs) == 1:
        if not call.rule.proportional or call.output is None:
            return (relevance,)
        return (call.x * stabilized_ratio(relevance, call.output, _eps(call)),)
    a, b = call.inputs
    if a.shape != b.shape:
        raise ValueError(f"'{call.name}' must add tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if call.rule.proportional:
        ratio = stabilized_ratio(relevance, a + b, _eps(call))
        return a * ratio, b * ratio
    # where both are negative there is no positive part to share by; tiny decides only where both are 0
    tiny = torch.finfo(a.dtype).tiny
    if call.nonnegative:
        first, second = a + tiny, b + tiny
    else:
        either = torch.maximum(a, b) > 0
        first, second = (torch.where(either, value.clamp(min=0), value.abs() + tiny) for value in (a, b))
    share = relevance * stabilized_ratio(first, first + second, 0.0, positive=True)
    return share, relevance - share


def concatenated(call: LayerCall, relevance: Tensor) -> tuple[Tensor, ...]:
    """Cut the relevance of a concatenation apart."""
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0) % call.x.ndim
    return torch.split(relevance, [x.shape[dim] for x in call.inputs], dim + 1)


def _eps(call: LayerCall) -> float:
    return float(getattr(call.rule, "eps", _EPS))


def find_rule(rules: Mapping[Any, LayerRule], key: Any) -> LayerRule | None:
    """Return the rule of a function, a method name or a class of layers; a class inherits the rule of its bases."""
    if isinstance(key, type):
        return next((rules[base] for base in key.__mro__ if base in rules), None)
    return rules.get(key)


_PASSING: tuple[Any, ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.GELU, nn.SiLU),
    *(
        nn.Mish,
        MONAIMish,
        Swish,
        MemoryEfficientSwish,
        nn.Hardswish,
        nn.Sigmoid,
        nn.Tanh,
        nn.Identity,
        nn.modules.dropout._DropoutNd,
    ),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.softplus, F.dropout, F.dropout2d, F.dropout3d),
    *(torch.relu, torch.sigmoid, torch.tanh, "relu", "sigmoid", "tanh", "contiguous"),
)
_RESHAPING: tuple[Any, ...] = (
    *(nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze),
    *("flatten", "reshape", "view", "squeeze", "unsqueeze"),
)
_MAXIMA: tuple[Any, ...] = (
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d),
)
_AVERAGES: tuple[Any, ...] = (
    *(nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.Upsample, F.interpolate),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
)
_NORMS: tuple[Any, ...] = (
    *(nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm),
)

LAYER_RULES: Mapping[Any, LayerRule] = MappingProxyType(
    {
        **dict.fromkeys((nn.Linear, nn.modules.conv._ConvNd), weighted),
        **dict.fromkeys(_PASSING, pass_on),
        **dict.fromkeys(_RESHAPING, reshape_back),
        **dict.fromkeys(_MAXIMA, pool_max),
        **dict.fromkeys(_AVERAGES, pool_average),
        **dict.fromkeys(_NORMS, normalized),
        **dict.fromkeys((operator.add, torch.add, "add"), sum_share),
        **dict.fromkeys((torch.cat, torch.concat), concatenated),
        **dict.fromkeys((torch.mean, "mean"), mean_share),
    }
)
"""Class of a layer, function, or name of a tensor method -> its rule."""
