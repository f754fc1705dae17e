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

"""Layers with weights as linear maps that can be applied forwards and, with any weight, transposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LinearMap", "WeightedLayer", "normalization", "stabilized_ratio"]

_CONV: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def stabilized_ratio(a: Tensor, b: Tensor, eps: float, *, positive: bool = False) -> Tensor:
    r"""Divide by a denominator that is kept away from 0.

    .. math:: a / (b + \epsilon\, \mathrm{sign}^+(b)), \qquad \mathrm{sign}^+(0) = 1

    Args:
        a: numerator.
        b: denominator, broadcastable to ``a``.
        eps: stabilizer.
        positive: ``b`` is known not to be negative, which spares looking.

    Example:
        >>> stabilized_ratio(torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.5, 0.0, -0.5]), 0.5)
        tensor([1., 0., 1.])
    """
    return a / (b + eps if positive else b + torch.where(b < 0, -eps, eps))


class LinearMap(Protocol):
    """A map that is linear in its input and in its weight, without bias."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the map to ``N Cin ...``."""
        ...

    def transpose(self, y: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
        """Apply the transposed map to ``N Cout ...``; ``size`` is the shape of an input sample."""
        ...

    def of_ones(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the map to ones in the shape of ``x``; broadcastable to the output."""
        ...

    def scale_outputs(self, weight: Tensor, factor: Tensor) -> Tensor:
        """Multiply the weights of each output channel by a factor ``Cout``."""
        ...


@dataclass(frozen=True)
class Dense:
    """The map of ``nn.Linear``, on the last axis."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def transpose(self, y: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
        return y @ weight

    def of_ones(self, x: Tensor, weight: Tensor) -> Tensor:
        return weight.sum(1)

    def scale_outputs(self, weight: Tensor, factor: Tensor) -> Tensor:
        return weight * factor[:, None]


@dataclass(frozen=True)
class Convolution:
    """The map of ``nn.Conv1d/2d/3d`` or, with ``transposed``, of ``nn.ConvTranspose1d/2d/3d``."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.transposed:
            return self._up(x, weight, self.output_padding)
        return self._down(x, weight)

    def transpose(self, y: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
        if self.transposed:
            down = self._down(y, weight)
            # an output padding of a stride or more makes positions that no input reaches
            for axis, n in enumerate(size[1:], start=2):
                down = down.narrow(axis, 0, n)
            return down
        spans = [d * (k - 1) for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
        back = [span - p for span, p in zip(spans, self.padding, strict=True)]
        if self.groups == 1 and set(self.stride) == {1} and min(back) >= 0:
            # the same map as a convolution with mirrored weights: on CPU twice as fast for few channels
            mirrored = weight.transpose(0, 1).flip(tuple(range(2, weight.ndim)))
            several = min(4, 16 // len(mirrored)) if y.device.type == "cpu" and self.dilation[-1] == 1 else 1
            if several > 1 and not _exporting():
                return _packed(y, mirrored, back, self.dilation, several)
            return _CONV[len(self.stride) - 1](y, mirrored, None, 1, back, self.dilation)
        # up to a stride less one is missing; cutting it off keeps sizes out of the options, which exporters want fixed
        up = self._up(y, weight, [s - 1 for s in self.stride])
        for axis, n in enumerate(size[1:], start=2):
            up = up.narrow(axis, 0, n)
        return up

    def of_ones(self, x: Tensor, weight: Tensor) -> Tensor:
        # all channels are the same: one per group of inputs that share an output will do
        if not self.transposed:
            conv = _CONV[len(self.stride) - 1]
            ones = x.new_ones(1, 1, *x.shape[2:])
            return conv(ones, weight.sum(1, keepdim=True), None, self.stride, self.padding, self.dilation)
        ones = x.new_ones(1, self.groups, *x.shape[2:])
        return self._up(ones, weight.unflatten(0, (self.groups, -1)).sum(1), self.output_padding)

    def scale_outputs(self, weight: Tensor, factor: Tensor) -> Tensor:
        rest = (1,) * len(self.stride)
        if not self.transposed:
            return weight * factor.reshape(-1, 1, *rest)
        grouped: Tensor = weight.unflatten(0, (self.groups, -1)) * factor.reshape(self.groups, 1, -1, *rest)
        return grouped.flatten(0, 1)

    def _down(self, x: Tensor, weight: Tensor) -> Tensor:
        conv = _CONV[len(self.stride) - 1]
        return conv(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def _up(self, y: Tensor, weight: Tensor, output_padding: Sequence[int]) -> Tensor:
        conv = _CONV_TRANSPOSE[len(self.stride) - 1]
        return conv(y, weight, None, self.stride, self.padding, output_padding, self.groups, self.dilation)


def _exporting() -> bool:
    """Whether a graph is being made that other devices and sizes have to run."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_exporting()


def _packed(y: Tensor, weight: Tensor, padding: Sequence[int], dilation: tuple[int, ...], several: int) -> Tensor:
    """Convolution of stride 1 that computes neighbors of the last axis as channels.

    CPU kernels work on blocks of 16 output channels, however few there are: for an image of 4 modalities this is twice
    to three times as fast.
    """
    edge, n = padding[-1], y.shape[-1] + 2 * padding[-1] - weight.shape[-1] + 1
    steps = -(-n // several)
    shifted = torch.cat([F.pad(weight, (i, several - 1 - i)) for i in range(several)])
    strides = (1,) * (len(padding) - 1) + (several,)
    y = F.pad(y, (edge, edge + steps * several - n))
    out = _CONV[len(padding) - 1](y, shifted, None, strides, (*padding[:-1], 0), dilation)
    whole: Tensor = out.unflatten(1, (several, -1)).movedim(1, -1).flatten(-2)
    return whole[..., :n]


def linear_map(module: nn.Module, name: str) -> LinearMap:
    """Return the linear map of a layer.

    Raises:
        ValueError: When a convolution pads with something else than zeros, or not symmetrically.
    """
    if isinstance(module, nn.Linear):
        return Dense()
    if not isinstance(module, nn.modules.conv._ConvNd):
        raise ValueError(f"layer '{name}' must be a Linear or a convolution, got {type(module).__name__}")
    if module.padding_mode != "zeros":
        raise ValueError(f"layer '{name}' must pad with zeros, got padding_mode={module.padding_mode!r}")
    padding = module.padding
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if padding == "same" and any(span % 2 for span in spans):
            raise ValueError(f"layer '{name}' must pad symmetrically, got kernel {module.kernel_size} and 'same'")
        padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
    transposed = bool(module.transposed)
    return Convolution(
        module.stride, padding, module.dilation, module.groups, transposed, module.output_padding if transposed else ()
    )


@dataclass(frozen=True)
class WeightedLayer:
    r"""A layer with weights as a relevance rule sees it: :math:`y = a\,(W x) + o`.

    Args:
        x: input, ``B Cin ...``.
        nonnegative: ``x`` can't be negative.
        map: the linear map.
        weight: ``W``; where a normalization is folded in, with the sign of its factor.
        affine: gives ``a``, positive, and ``o``, both broadcastable to ``y``; ``None`` stands for 1 and for 0.
        output: ``y`` as the network computed it, or ``None`` when it must be computed again (half precision).
    """

    x: Tensor
    nonnegative: bool
    map: LinearMap
    weight: Tensor
    affine: Callable[[], tuple[Tensor | None, Tensor | None]]
    output: Tensor | None

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """``W x`` with any input and weight."""
        return self.map.forward(x, weight)

    def backward(self, relevance: Tensor, weight: Tensor) -> Tensor:
        """Transposed map on ``T B Cout ...`` with any weight."""
        flat = self.map.transpose(relevance.flatten(0, 1), weight, self.x.shape[1:])
        return flat.reshape(*relevance.shape[:2], *flat.shape[1:])


def normalization(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and summand of a normalization layer in its current mode: ``y = factor * x + summand``.

    The statistics are part of the graph: relevance never flows through them, but the gradient of a loss on a map does.

    Args:
        module: a batch, instance, group or layer normalization.
        x: its input, ``B C ...``.

    Returns:
        factor and summand, both broadcastable to ``x``.
    """
    spatial = tuple(range(2, x.ndim))
    shape = (1, -1, *(1,) * len(spatial))
    weight, bias = module.weight, module.bias
    if isinstance(module, nn.LayerNorm):
        dims = tuple(range(x.ndim - len(module.normalized_shape), x.ndim))
        var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    else:
        weight, bias = (None if p is None else p.reshape(shape) for p in (weight, bias))
        if isinstance(module, nn.GroupNorm):
            groups = x.reshape(x.shape[0], module.num_groups, -1)
            stats = (
                s.repeat_interleave(x.shape[1] // module.num_groups, 1) for s in torch.var_mean(groups, 2, correction=0)
            )
            var, mean = (s.reshape(*x.shape[:2], *(1,) * len(spatial)) for s in stats)
        elif module.running_mean is not None and not module.training:
            var, mean = module.running_var.reshape(shape), module.running_mean.reshape(shape)
        else:
            dims = (0, *spatial) if isinstance(module, nn.modules.batchnorm._BatchNorm) else spatial
            var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    factor = (var.to(x.dtype) + module.eps).rsqrt()
    if weight is not None:
        factor = factor * weight.to(x.dtype)
    summand = -mean.to(x.dtype) * factor
    return factor, summand if bias is None else summand + bias.to(x.dtype)
