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

"""Relevance rules of layers with weights, each as the equation it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from monai_rrr.attribution.lrp_linear import WeightedLayer, stabilized_ratio

__all__ = ["AlphaBeta", "Epsilon", "Flat", "Gamma", "Rule", "WSquare", "ZBox", "ZPlus"]


class Rule(Protocol):
    """Maps relevance ``T B Cout ...`` of a layer's output to relevance ``T B Cin ...`` of its input.

    ``proportional`` says how layers without weights go along: where it is true, sums, poolings and normalizations
    share relevance in proportion to signed contributions, which is exact while relevance is activation times gradient.
    Where it is false, relevance can be anything, so that a total near 0 must not be divided by: sums share by
    positive parts, poolings by absolute values, and a normalization that follows no convolution passes relevance on.
    """

    @property
    def proportional(self) -> bool:
        """Whether layers without weights share by signed contributions."""
        ...

    def __call__(self, layer: WeightedLayer, relevance: Tensor) -> Tensor:
        """Return the relevance of the input."""
        ...


@dataclass(frozen=True)
class Epsilon:
    r"""LRP-epsilon; in the limit of 0 it is input times gradient.

    .. math:: R_x = x \cdot W^\top \big[ a R / (y + \epsilon\, \mathrm{sign}^+(y)) \big]

    Offsets absorb relevance: what is missing at the input is their share.

    Args:
        eps: stabilizer.

    Example:
        >>> Epsilon().eps
        1e-06
    """

    eps: float = 1e-6
    proportional: ClassVar[bool] = True

    def __call__(self, layer: WeightedLayer, relevance: Tensor) -> Tensor:
        """Return the relevance of the input."""
        scale, offset = layer.affine()
        total = _total(layer.forward(layer.x, layer.weight), scale, offset) if layer.output is None else layer.output
        ratio = _scaled(stabilized_ratio(relevance, total, self.eps), scale)
        return layer.x * layer.backward(ratio, layer.weight)


@dataclass(frozen=True)
class Gamma:
    r"""LRP-gamma in its general form, which favors contributions that agree with the sign of the output.

    .. math:: R_x = \sum_{\pm} c_\pm\Big[\frac{a R\, 1(\pm y > 0)}{y + \gamma y_\pm}\Big], \qquad
              c_\pm = (x W) + \gamma (x W)_\pm

    where :math:`(xW)_\pm` are the contributions of one sign and :math:`y_\pm` is their sum with the offset of that
    sign. For inputs and outputs that are not negative it is the usual ``W + gamma max(W, 0)``.

    Args:
        gamma: how much; 0 is LRP-epsilon, infinity z+.
        eps: stabilizer.

    Reference:
        G. Montavon et al., Layer-wise relevance propagation: an overview, 2019; general form: L. Andeol et al.,
        Learning domain invariant representations by joint Wasserstein distance minimization, 2021.
    """

    gamma: float = 0.25
    eps: float = 1e-6
    proportional: ClassVar[bool] = False

    def __call__(self, layer: WeightedLayer, relevance: Tensor) -> Tensor:
        """Return the relevance of the input."""
        scale, offset = layer.affine()
        weight = layer.weight
        more = weight + self.gamma * weight.clamp(min=0), weight + self.gamma * weight.clamp(max=0)
        y = _total(layer.forward(layer.x, weight), scale, offset) if layer.output is None else layer.output
        result = torch.zeros_like(layer.x)
        for agree, against, positive in ((more[0], more[1], True), (more[1], more[0], False)):
            total = _total(_signed_forward(layer, agree, against), scale, offset)
            if offset is not None:
                total = total + self.gamma * (offset.clamp(min=0) if positive else offset.clamp(max=0))
            own = relevance * ((y >= 0) if positive else (y < 0))
            ratio = _scaled(stabilized_ratio(own, total, self.eps), scale)
            result = result + _signed_backward(layer, ratio, agree, against)
        return result


@dataclass(frozen=True)
class ZPlus:
    r"""LRP-z+: shares by positive contributions only. Conserves relevance.

    .. math:: R_x = x^+ \cdot (W^+)^\top q + x^- \cdot (W^-)^\top q, \qquad
              q = R / (W^+ x^+ + W^- x^-)

    Offsets take no part, so nothing is absorbed; relevance gets lost only where no contribution is positive.

    Args:
        eps: stabilizer.
    """

    eps: float = 1e-6
    proportional: ClassVar[bool] = False

    def __call__(self, layer: WeightedLayer, relevance: Tensor) -> Tensor:
        """Return the relevance of the input."""
        return _one_sign(layer, relevance, layer.weight.clamp(min=0), layer.weight.clamp(max=0), self.eps, True)


@dataclass(frozen=True)
class AlphaBeta:
    r"""LRP-alpha-beta: positive and negative contributions apart, :math:`\alpha - \beta = 1`.

    .. math:: R_x = \alpha\, (xW)_+ \Big[\frac{R}{\sum (xW)_+}\Big] - \beta\, (xW)_- \Big[\frac{R}{\sum (xW)_-}\Big]

    Offsets take no part. Conserves wherever there are contributions of both signs.

    Args:
        alpha: weight of the positive contributions.
        beta: weight of the negative ones.
        eps: stabilizer.

    Raises:
        ValueError: When ``alpha - beta`` is not 1 or ``beta`` is negative.
    """

    alpha: float = 2.0
    beta: float = 1.0
    eps: float = 1e-6
    proportional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(f"expected alpha - beta = 1 and beta >= 0, got alpha {self.alpha} and beta {self.beta}")

    def __call__(self, layer: WeightedLayer, relevance: Tensor) -> Tensor:
        """Return the relevance of the input."""
        positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        result = self.alpha * _one_sign(layer, relevance, positive, negative, self.eps, True)
        if self.beta == 0:
            return result
        return result - self.beta * _one_sign(layer, relevance, negative, positive, self.eps, False)


@dataclass(frozen=True)
class ZBox:
    r"""LRP-z^B, for the first layer: inputs lie in a known box. Conserves relevance.

    .. math:: R_x = c\,\Big[\frac{R}{\sum c}\Big], \qquad c = x W - l W^+ - h W^-

    Args:
        low: lower bound ``l`` of the image: one number, or one per channel.
        high: upper bound ``h``.
        eps: stabilizer.

    Raises:
        ValueError: When a lower bound is above its upper bound.
    """

    low: float | Sequence[float]
    high: float | Sequence[float]
    eps: float = 1e-6
    proportional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        low, high = torch.as_tensor(self.low), torch.as_tensor(self.high)
        if bool((low > high).any()):
            raise ValueError(f"expected low <= high, got {self.low} and {self.high}")

    def __call__(self, layer: WeightedLayer, relevance: Tensor) -> Tensor:
        """Return the relevance of the input."""
        weight, x = layer.weight, layer.x
        low, high = self._bound(self.low, x), self._bound(self.high, x)
        parts = ((x, weight), (-low, weight.clamp(min=0)), (-high, weight.clamp(max=0)))
        total = sum((layer.forward(value, part) for value, part in parts), start=torch.zeros((), device=x.device))
        ratio = stabilized_ratio(relevance, total, self.eps)
        return sum((value * layer.backward(ratio, part) for value, part in parts), start=torch.zeros_like(x))

    def _bound(self, bound: float | Sequence[float], x: Tensor) -> Tensor:
        values = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
        return values.reshape(1, -1, *(1,) * (x.ndim - 2)).expand_as(x)


@dataclass(frozen=True)
class WSquare:
    r"""LRP-w^2, for the first layer: shares by squared weights, whatever the image. Conserves relevance.

    .. math:: R_x = (W^2)^\top \big[ R / (W^2 1) \big]

    Args:
        eps: stabilizer.
    """

    eps: float = 1e-12
    proportional: ClassVar[bool] = False

    def __call__(self, layer: WeightedLayer, relevance: Tensor) -> Tensor:
        """Return the relevance of the input."""
        return _constant_share(layer, relevance, layer.weight.square(), self.eps)


@dataclass(frozen=True)
class Flat:
    r"""LRP-flat, for the first layer: equal shares for the whole field of view. Conserves relevance.

    Every input channel gets the same, so the map says nothing about modalities.

    .. math:: R_x = 1^\top \big[ R / (1 \cdot 1) \big]

    Args:
        eps: stabilizer.
    """

    eps: float = 1e-12
    proportional: ClassVar[bool] = False

    def __call__(self, layer: WeightedLayer, relevance: Tensor) -> Tensor:
        """Return the relevance of the input."""
        return _constant_share(layer, relevance, torch.ones_like(layer.weight), self.eps)


def _total(linear: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    linear = _scaled(linear, scale)
    return linear if offset is None else linear + offset


def _scaled(value: Tensor, scale: Tensor | None) -> Tensor:
    return value if scale is None else value * scale


def _signed_forward(layer: WeightedLayer, agree: Tensor, against: Tensor) -> Tensor:
    if layer.nonnegative:
        return layer.forward(layer.x, agree)
    return layer.forward(layer.x.clamp(min=0), agree) + layer.forward(layer.x.clamp(max=0), against)


def _signed_backward(layer: WeightedLayer, ratio: Tensor, agree: Tensor, against: Tensor) -> Tensor:
    if layer.nonnegative:
        return layer.x * layer.backward(ratio, agree)
    positive = layer.x.clamp(min=0) * layer.backward(ratio, agree)
    return positive + layer.x.clamp(max=0) * layer.backward(ratio, against)


def _one_sign(
    layer: WeightedLayer, relevance: Tensor, agree: Tensor, against: Tensor, eps: float, positive: bool
) -> Tensor:
    ratio = stabilized_ratio(relevance, _signed_forward(layer, agree, against), eps, positive=positive)
    return _signed_backward(layer, ratio, agree, against)


def _constant_share(layer: WeightedLayer, relevance: Tensor, weight: Tensor, eps: float) -> Tensor:
    total = layer.map.of_ones(layer.x, weight)
    return layer.backward(stabilized_ratio(relevance, total, eps, positive=True), weight)
