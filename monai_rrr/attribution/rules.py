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

"""Rules that change how a network goes backward, for one explanation only and without touching the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from monai_rrr.attribution.attributor import single_precision

__all__ = ["BackwardRule", "constant_statistics", "guided_rectifiers"]


class BackwardRule(TorchFunctionMode):
    """While entered, functions that a network calls get another backward rule; it holds inside :meth:`applied` only.

    A forward pass inside ``with rule:`` computes what it always computes. Its graph goes backward by the rule inside
    ``with rule.applied():``, where a heatmap is made, and as usual everywhere else: a loss on the heatmap has the exact
    gradient, although it goes through the same graph. Nothing is put on the network, so nothing must be restored.

    Args:
        replaced: functions of torch -> what is called instead, with the rule as first argument.
    """

    def __init__(self, replaced: dict[Callable[..., Any], Callable[..., Tensor]]) -> None:
        super().__init__()
        self.replaced = replaced
        self.on = False
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the function, or what replaces it."""
        instead = self.replaced.get(func)
        if instead is None:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return instead(self, *args, **(kwargs or {}))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Go backward by the rule."""
        self.on = True
        try:
            yield
        finally:
            self.on = False


class _Constant(torch.autograd.Function):
    """The identity, through which no gradient passes while a rule is on."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rule: BackwardRule) -> Tensor:
        ctx.rule = rule
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        return None if ctx.rule.on else gradient, None


def _constant(value: Tensor, rule: BackwardRule) -> Tensor:
    result: Tensor = _Constant.apply(value, rule)  # type: ignore[no-untyped-call]
    return result


def guided_rectifiers() -> BackwardRule:
    """Let only positive gradients pass back through a rectifier (ReLU, leaky and parametric ReLU)."""

    def replacement(func: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(rule: BackwardRule, *args: Any, **kwargs: Any) -> Tensor:
            output = func(*args, **kwargs)
            if output.requires_grad:
                output.register_hook(lambda gradient: gradient.clamp(min=0) if rule.on else gradient)
            return output

        return call

    rectifiers = (F.relu, F.leaky_relu, F.prelu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
    return BackwardRule({func: replacement(func) for func in rectifiers})


def constant_statistics(mean: bool) -> BackwardRule:
    """Take the standard deviations of instance, group and layer normalization as constants.

    The layer is then linear in its input. Batch normalization stays as it is: in evaluation it is affine anyway.

    Args:
        mean: take the means as constants as well; the layer is then affine, and cheaper to differentiate.
    """

    def standardized(rule: BackwardRule, x: Tensor, dims: list[int], eps: float) -> Tensor:
        center = x.mean(dims, keepdim=True)
        variance = (x - center).square().mean(dims, keepdim=True)
        centered = x - (_constant(center, rule) if mean else center)
        return centered * _constant((variance + eps).rsqrt(), rule)

    def scaled(out: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
        out = out if weight is None else out * single_precision(weight).view(shape)
        out = out if bias is None else out + single_precision(bias).view(shape)
        return out.to(like.dtype)

    def instance(
        rule: BackwardRule,
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not use_input_stats:
            return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        out = standardized(rule, single_precision(input), list(range(2, input.ndim)), eps)
        return scaled(out, weight, bias, (1, -1, *(1,) * (input.ndim - 2)), input)

    def group(
        rule: BackwardRule,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        grouped = single_precision(input).reshape(len(input), num_groups, -1)
        out = standardized(rule, grouped, [2], eps).reshape(input.shape)
        return scaled(out, weight, bias, (1, -1, *(1,) * (input.ndim - 2)), input)

    def layer(
        rule: BackwardRule,
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        out = standardized(rule, single_precision(input), list(range(-len(normalized_shape), 0)), eps)
        return scaled(out, weight, bias, tuple(normalized_shape), input)

    return BackwardRule({F.instance_norm: instance, F.group_norm: group, F.layer_norm: layer})
