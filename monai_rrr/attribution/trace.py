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

"""One forward pass kept as a differentiable value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_rrr.attribution.exclusive import exclusive

__all__ = ["INPUT", "Trace", "record"]

INPUT = "<image>"
"""Name by which the image itself is recorded as if it were a layer, for attributors that differentiate by it."""


@dataclass(frozen=True)
class Trace:
    """One differentiable forward pass: the image, the logits and the features of the recorded layers.

    Made by :func:`record`. Attributors and terms read it; only :meth:`rerun` calls the network again.

    Args:
        network: the network that was called, unwrapped or in ``DistributedDataParallel``.
        layers: names of the recorded layers, those of the unwrapped network.
        image: ``BMH[WD]``.
        logits: what the network returned, ``BK`` or ``BMK``, or ``BKH[WD]`` for a segmentation network.
        features: layer name -> output of the layer, ``BCh[wd]``.
        forward_kwargs: further keyword arguments of the network's ``forward``, used again by :meth:`rerun`.
        sources: layer name -> the tensor in the graph of ``logits``. Differs from ``features`` only after
            :meth:`split`, because a slice of the features is no ancestor of the logits. Default: ``features``.
        samples: first and last + 1 sample of the batch of ``sources`` that this trace shows. Default: all.
        autocast: precision of the autocast under which the network was called, used again by :meth:`rerun`. Default:
            none.
    """

    network: nn.Module
    layers: tuple[str, ...]
    image: Tensor
    logits: Tensor
    features: Mapping[str, Tensor]
    forward_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    samples: tuple[int, int] | None = None
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            object.__setattr__(self, "sources", self.features)

    def rerun(
        self, image: Tensor, *, update_statistics: bool, frozen_weights: bool = False, **forward_kwargs: Any
    ) -> Trace:
        """Call the same network on another image, in the same precision, and record the same layers.

        Args:
            image: ``BMH[WD]``.
            update_statistics: whether normalization statistics may move: ``True`` for images that are data (warped
                ones), ``False`` for images that are not (erased ones). With ``False`` the network is called with cloned
                buffers: the logits are those of a plain call in the current mode, all buffers stay bit-identical.
            frozen_weights: call the network with detached parameters, so that gradient reaches the image only; buffers
                are then cloned as well.
            forward_kwargs: replace those of this trace by name; the others are passed again.
        """
        kwargs = {**self.forward_kwargs, **forward_kwargs}
        with torch.autocast(image.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return record(
                self.network,
                image,
                self.layers,
                update_statistics=update_statistics,
                frozen_weights=frozen_weights,
                **kwargs,
            )

    def split(self) -> tuple[Trace, Trace]:
        """Split a batch of n samples followed by their n second views into the traces of the two halves.

        Image, logits, features and those ``forward_kwargs`` that are tensors with one entry per sample are sliced.
        Logits and features may hold several entries per sample (modalities folded into the batch axis, sample by
        sample). An attributor that needs gradients works on a half, but goes backward through both: explaining the
        whole trace and splitting the heatmap is cheaper.

        Raises:
            ValueError: When the number of samples is odd.
        """
        batch = self.image.shape[0]
        if batch % 2:
            raise ValueError(f"expected n samples followed by their n second views, got a batch of {batch}")
        half = batch // 2
        return self._part(0, half), self._part(half, batch)

    def own(self, layer: str, gradient: Tensor) -> Tensor:
        """Slice a gradient with respect to ``sources[layer]`` to the samples that this trace shows."""
        if self.samples is None:
            return gradient
        start, stop = self.samples
        entries = self.features[layer].shape[0] // (stop - start)
        return gradient[start * entries : stop * entries]

    def _part(self, start: int, stop: int) -> Trace:
        batch = self.image.shape[0]
        offset = 0 if self.samples is None else self.samples[0]

        def take(tensor: Tensor, name: str) -> Tensor:
            entries, rest = divmod(tensor.shape[0] if tensor.ndim else 0, batch)
            if rest or not entries:
                raise ValueError(
                    f"{name} {tuple(tensor.shape)} has no whole number of entries per sample, batch {batch}"
                )
            return tensor[start * entries : stop * entries]

        kwargs = {
            name: value[start:stop] if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch else value
            for name, value in self.forward_kwargs.items()
        }
        return Trace(
            network=self.network,
            layers=self.layers,
            image=self.image[start:stop],
            logits=take(self.logits, "logits"),
            features={name: take(value, f"output of layer '{name}'") for name, value in self.features.items()},
            forward_kwargs=kwargs,
            sources=self.sources,
            samples=(offset + start, offset + stop),
            autocast=self.autocast,
        )


def record(
    network: nn.Module,
    image: Tensor,
    layers: Sequence[str],
    *,
    update_statistics: bool = True,
    frozen_weights: bool = False,
    **forward_kwargs: Any,
) -> Trace:
    """Call a network once and keep the outputs of some layers, differentiable.

    Hooks live only during the call, also when it fails; other threads wait for their turn. Nothing of the network is
    changed, except what a plain call changes; ``MetaTensor`` inputs are passed on as plain tensors.

    Args:
        network: any module; a ``DistributedDataParallel`` wrapper is called, but never named.
        image: ``BMH[WD]``.
        layers: dotted names of the layers, as in ``network.named_modules()``. Each must be called exactly once and
            return one tensor that nothing overwrites in place later on. :data:`INPUT` names the image: a copy that
            requires grad is then passed on, unless the image requires it already.
        update_statistics: ``False`` calls the network with cloned buffers, see :meth:`Trace.rerun`.
        frozen_weights: call the network with detached parameters, see :meth:`Trace.rerun`.
        forward_kwargs: further keyword arguments of the network's ``forward``; kept in the trace.

    Returns:
        the trace. When the network returns a tuple or list, its first entry is taken as the logits.

    Raises:
        ValueError: When a layer does not exist, is not called exactly once, or its output is overwritten in place.
        TypeError: When ``layers`` is one string, or an output is no tensor.

    Example:
        >>> network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 3))
        >>> trace = record(network, torch.ones(2, 1, 4, 4, 4), ["0"])
        >>> trace.logits.shape, trace.features["0"].shape
        (torch.Size([2, 3]), torch.Size([2, 2, 4, 4, 4]))
        >>> first, second = trace.split()
        >>> second.features["0"].shape
        torch.Size([1, 2, 4, 4, 4])
    """
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names, got the string '{layers}': write ['{layers}']")
    names = tuple(dict.fromkeys(layers))
    modules = {name: _find(unwrapped(network), name) for name in names if name != INPUT}
    image = _plain(image)
    if INPUT in names and not image.requires_grad:
        image = image.detach().clone().requires_grad_(True)
    kwargs = {name: _plain(value) for name, value in forward_kwargs.items()}
    with exclusive(network), _recording(modules) as outputs:
        if update_statistics and not frozen_weights:
            result = network(image, **kwargs)
        else:
            replaced = {name: buffer.clone() for name, buffer in network.named_buffers()}
            if frozen_weights:
                replaced |= {name: parameter.detach() for name, parameter in network.named_parameters()}
            result = torch.func.functional_call(network, replaced, (image,), kwargs)
    logits = result[0] if isinstance(result, (tuple, list)) and result else result
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the network must return a tensor or a tuple or list that starts with one, got {_kind(result)}"
        )
    features = {name: image if name == INPUT else _checked(name, outputs[name]) for name in names}
    return Trace(network, names, image, logits, features, kwargs, autocast=_autocast(image.device.type))


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _plain(value: Any) -> Any:
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def _kind(value: object) -> str:
    return type(value).__name__


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside a ``DistributedDataParallel`` wrapper, or the network itself."""
    if not isinstance(network, DistributedDataParallel):
        return network
    if network.static_graph:
        raise ValueError(
            "expected DistributedDataParallel(static_graph=False): static_graph=True gives wrong gradients"
        )
    inner: nn.Module = network.module
    return inner


def _find(network: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(network.named_modules())
    if not name or name not in modules:
        close = get_close_matches(name, [key for key in modules if key], n=3, cutoff=0.4)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise ValueError(f"{_kind(network)} has no layer '{name}'{hint}")
    return modules[name]


@contextmanager
def _recording(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, int]]]]:
    outputs: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in modules}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                raise TypeError(f"layer '{name}' must return a tensor, got {_kind(output)} from {_kind(module)}")
            outputs[name].append((output, output._version))

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _checked(name: str, outputs: list[tuple[Tensor, int]]) -> Tensor:
    if len(outputs) != 1:
        raise ValueError(f"layer '{name}' must be called exactly once in a forward pass, got {len(outputs)} calls")
    output, version = outputs[0]
    if output._version != version:
        raise ValueError(
            f"the output of layer '{name}' was overwritten in place later on (ReLU(inplace=True), '+='): expected "
            "an output that stays as it was; name the layer that overwrites it, or the block around both, instead"
        )
    return output
