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

"""Average pooling and up-sampling as one matrix per axis, which gives their exact transposes for every option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["axis_matrices", "spread"]

_INTERPOLATE: tuple[Any, ...] = (nn.Upsample, F.interpolate)
_ADAPTIVE: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_MODES = {"nearest": "nearest", "nearest-exact": "nearest-exact", "linear": "linear", "bilinear": "linear"}
_MODES["trilinear"] = "linear"


class PoolingCall(Protocol):
    """What is needed of a call of a pooling or up-sampling layer or function."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> nn.Module | None: ...
    @property
    def target(self) -> Any: ...
    @property
    def x(self) -> Tensor: ...
    def option(self, name: str, position: int, default: Any = None) -> Any: ...


def spread(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one matrix ``n_in n_out`` to each of the last axes of ``x``."""
    for axis, matrix in enumerate(matrices, start=x.ndim - len(matrices)):
        x = (x.movedim(axis, -1) @ matrix).movedim(-1, axis)
    return x


def axis_matrices(call: PoolingCall) -> list[Tensor]:
    """Matrix ``n_in n_out`` of each spatial axis of an average pooling or an up-sampling.

    Found by calling the operator in 1D on unit vectors, so padding, rounding of sizes and alignment are those of torch.

    Raises:
        ValueError: When the operator is not one matrix per axis: bicubic interpolation, or an average with another
            divisor.
    """
    size = call.x.shape[2:]
    per_axis = [_options(call, axis, len(size)) for axis in range(len(size))]
    return [
        operator(torch.eye(n, dtype=call.x.dtype, device=call.x.device)[None], **options)[0]
        for n, (operator, options) in zip(size, per_axis, strict=True)
    ]


def _options(call: PoolingCall, axis: int, count: int) -> tuple[Any, dict[str, Any]]:
    def along(value: Any) -> Any:
        return value[axis if len(value) == count else 0] if isinstance(value, (tuple, list)) else value

    if isinstance(call.module, nn.Upsample) or call.target in _INTERPOLATE:
        mode = call.option("mode", 2, "nearest")
        if mode not in _MODES:
            raise ValueError(f"layer '{call.name}' must interpolate linearly or to the nearest, got mode={mode!r}")
        align = {"align_corners": call.option("align_corners", 3)} if _MODES[mode] == "linear" else {}
        options = {"size": along(call.option("size", 0)), "scale_factor": along(call.option("scale_factor", 1))}
        again = {"recompute_scale_factor": call.option("recompute_scale_factor", 4)}
        return F.interpolate, {**options, **align, **again, "mode": _MODES[mode]}
    if isinstance(call.module, nn.modules.pooling._AdaptiveAvgPoolNd) or call.target in _ADAPTIVE:
        size = along(call.option("output_size", 0))
        return F.adaptive_avg_pool1d, {"output_size": call.x.shape[2 + axis] if size is None else size}
    if call.option("divisor_override", 5) is not None:
        raise ValueError(f"layer '{call.name}' must divide by the size of its window, got divisor_override")
    names = {"kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
    values = {name: along(call.option(name, i, default)) for i, (name, default) in enumerate(names.items())}
    return F.avg_pool1d, values
