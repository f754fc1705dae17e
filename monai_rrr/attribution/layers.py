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

"""Which layers of a network can be explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from monai_rrr.attribution.trace import unwrapped

__all__ = ["find_layers"]


def find_layers(network: nn.Module, image: Tensor, **forward_kwargs: Any) -> dict[str, tuple[int, ...]]:
    """List the layers whose output a class activation map can be made of, in the order in which they are finished.

    A layer is listed when it is called exactly once, returns one tensor ``BKh[wd]`` with more than one voxel, and
    nothing overwrites the tensor in place. Channels-last outputs are listed too, since their shape doesn't tell; tokens
    ``BNC`` are not. Both need ``reshape``, see :mod:`monai_rrr.attribution.layout`.

    Args:
        network: any module; called once, in its current mode, with cloned buffers and without gradients.
        image: ``BMH[WD]``; a small one will do.
        forward_kwargs: further keyword arguments of the network's ``forward``.

    Returns:
        name -> shape ``(K, h[, w, d])``. Close to the end of the network and coarse is what Grad-CAM was made for.

    Example:
        >>> network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        >>> find_layers(network, torch.rand(1, 1, 6, 6, 6))
        {'1': (4, 4, 4, 4)}
    """
    inner = unwrapped(network)
    outputs: dict[str, list[tuple[Any, int]]] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            version = output._version if isinstance(output, Tensor) else 0
            outputs.setdefault(name, []).append((output, version))

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in inner.named_modules() if name]
    try:
        with torch.no_grad():
            buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
            torch.func.functional_call(network, buffers, (image,), forward_kwargs)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: calls[0] for name, calls in outputs.items() if len(calls) == 1}
    return {
        name: tuple(output.shape[1:])
        for name, (output, version) in found.items()
        if isinstance(output, Tensor)
        and output._version == version
        and output.ndim == image.ndim
        and output[0, 0].numel() > 1
    }
