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

"""What a training step minimizes: named, weighted terms over one trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Protocol, Union

from torch import Tensor

from monai_rrr.attribution.trace import Trace

__all__ = ["Objective", "Term", "Weight"]

Weight = Union[float, Callable[[float], float]]  # noqa: UP007  evaluated at run time


class Term(Protocol):
    """Scalar part of an objective, unweighted. Further forward passes go through ``trace.rerun``."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that must be recorded."""
        ...

    def __call__(self, trace: Trace, batch: Mapping[str, Any]) -> Tensor:
        """Return the unweighted value, a scalar tensor that carries gradient."""
        ...


@dataclass(frozen=True)
class Objective:
    r"""Weighted sum of terms over one trace.

    .. math:: L(t) = \sum_i w_i(t) L_i

    A term whose weight is 0 at the moment is not evaluated: it equals an absent term bit for bit.

    Args:
        terms: name -> term, summed in this order.
        weights: name -> weight, at least 0: a number, or a schedule such as
            :class:`~monai_rrr.objectives.schedule.Ramp` from the progress of training in [0, 1] to a number. Default 1.

    Raises:
        ValueError: When there is no term, a weight belongs to no term, or a weight is negative or not finite.
        TypeError: When a weight is neither number nor callable.

    Example:
        >>> import torch
        >>> from monai_rrr.objectives.schedule import Ramp
        >>> class Mean:
        ...     layers = ()
        ...     def __call__(self, trace, batch):
        ...         return trace.logits.mean()
        >>> objective = Objective({"mean": Mean(), "late": Mean()}, {"late": Ramp(3.0, stop=0.5)})
        >>> trace = Trace(torch.nn.Identity(), (), torch.ones(2, 1, 4), torch.ones(2, 3), {})
        >>> objective(trace, {}, progress=0.0)
        (tensor(1.), {'mean': tensor(1.)})
        >>> objective(trace, {}, progress=1.0)
        (tensor(4.), {'mean': tensor(1.), 'late': tensor(1.)})
    """

    terms: Mapping[str, Term]
    weights: Mapping[str, Weight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("an objective needs at least one term, got none")
        unknown = sorted(set(self.weights) - set(self.terms))
        if unknown:
            raise ValueError(f"weights name unknown terms {unknown}: expected some of {sorted(self.terms)}")
        for name, weight in self.weights.items():
            if not callable(weight):
                _checked_weight(name, weight)

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers of all terms that can have a weight above 0, each once, in the order of the terms."""
        used = (term for name, term in self.terms.items() if self.weights.get(name, 1.0) != 0)
        return tuple(dict.fromkeys(layer for term in used for layer in term.layers))

    def weights_at(self, progress: float) -> dict[str, float]:
        """Return the weight of every term at a share of the training in [0, 1]."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must be in [0, 1], got {progress}")
        weights = {name: self.weights.get(name, 1.0) for name in self.terms}
        return {
            name: _checked_weight(name, weight(progress) if callable(weight) else weight)
            for name, weight in weights.items()
        }

    def __call__(
        self, trace: Trace, batch: Mapping[str, Any], progress: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Evaluate the terms.

        Args:
            trace: forward pass in which :attr:`layers` were recorded.
            batch: the batch, passed to every term.
            progress: share of the training that is done, in [0, 1]; schedules read it.

        Returns:
            the weighted total, and the unweighted, detached values of the evaluated terms by name.

        Raises:
            ValueError: When a term returns something else than a scalar, or no term has a weight above 0.
        """
        total: Tensor | None = None
        values: dict[str, Tensor] = {}
        for name, weight in self.weights_at(progress).items():
            if weight == 0:
                continue
            value = self.terms[name](trace, batch)
            if not isinstance(value, Tensor):
                raise ValueError(f"term '{name}' must return a scalar tensor, got {type(value).__name__}")
            if value.ndim != 0:
                raise ValueError(f"term '{name}' must return a scalar tensor, got shape {tuple(value.shape)}")
            values[name] = value.detach()
            total = weight * value if total is None else total + weight * value
        if total is None:
            raise ValueError(f"at progress {progress} no term has a weight above 0: {self.weights_at(progress)}")
        return total, values


def _checked_weight(name: str, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"weight of '{name}' must be a number or a callable, got {type(weight).__name__}")
    if not isfinite(weight) or weight < 0:
        raise ValueError(f"weight of '{name}' must be finite and at least 0, got {weight}")
    return float(weight)
