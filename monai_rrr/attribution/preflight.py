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

"""Find out before training whether a loss on heatmaps can reach the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_rrr.attribution.attributor import Attributor
from monai_rrr.attribution.cam import CAM
from monai_rrr.attribution.classmap import ClassMap
from monai_rrr.attribution.trace import record, unwrapped
from monai_rrr.errors import ConfigError

__all__ = ["probe"]

_CAUSES = (
    ("scaled_dot_product", "use_flash_attention", "build the network with use_flash_attention=False"),
    ("use_reentrant", "use_reentrant", "call torch.utils.checkpoint with use_reentrant=False"),
    (
        "checkpoint",
        "use_checkpoint",
        "build the network with use_checkpoint=False, or explain it by another attributor",
    ),
    ("aot_autograd", "torch.compile", "pass the network as it was before torch.compile"),
)


def probe(
    network: nn.Module,
    image_size: Sequence[int],
    attribute: Attributor,
    class_idx: Sequence[int] = (0,),
    **forward_kwargs: Any,
) -> list[str]:
    """Explain a random image, put a loss on the heatmap, and differentiate it by the weights.

    For the set-up of a run: what fails here would fail in the first step, later or with a worse message. Options that
    break double backward are named. Nothing of the network is changed: buffers, ``.grad``, modes and the random number
    generators are as before.

    Args:
        network: any module.
        image_size: ``B, M, H, W[, D]``, as the network will see it; two samples are enough.
        attribute: makes the heatmaps.
        class_idx: classes to explain.
        forward_kwargs: further keyword arguments of the network's ``forward``.

    Returns:
        names of the parameters that receive no gradient, neither from the logits nor from the heatmap. With several
        processes each of these needs ``find_unused_parameters=True``.

    Raises:
        ConfigError: ``explanation-unsupported``, with the option to change as its field: ``use_flash_attention``,
            ``use_reentrant``, ``use_checkpoint``, ``torch.compile``, ``static_graph``, ``no_grad``, ``requires_grad``,
            ``image_size``, or the attributor.

    Example:
        >>> from monai_rrr.attribution import InputTimesGradient
        >>> network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        >>> probe(network, (2, 1, 8, 8, 8), InputTimesGradient())
        []
    """
    second_order = not isinstance(attribute, (CAM, ClassMap))
    trainable = _checked(network, second_order)
    device = next(iter(trainable.values())).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        image = torch.randn(*image_size).to(device)
        try:
            trace = record(network, image, attribute.layers, update_statistics=False, **forward_kwargs)
        except (RuntimeError, ValueError, AssertionError) as error:
            hint = "the patch is too small, or no multiple of what the network asks for: see its message"
            raise _unsupported(
                f"the network fails on an image {tuple(image_size)}: {error}", "image_size", hint
            ) from error
        try:
            classes = torch.tensor(class_idx, device=device).expand(len(image), -1)
            heatmap = attribute(trace, classes)
            total = trace.logits.square().mean() + heatmap.square().sum()
            gradients = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
        except RuntimeError as error:
            if not second_order and "use_reentrant" in str(error):
                return []
            raise _diagnosed(network, error) from error
        except ValueError as error:
            raise _unsupported(f"no heatmap can be made: {error}", type(attribute).__name__, None) from error
    return _without_gradient(trainable, gradients, heatmap, attribute)


def _checked(network: nn.Module, second_order: bool) -> dict[str, nn.Parameter]:
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise _unsupported("gradients are disabled", "no_grad", "leave torch.no_grad() or torch.inference_mode()")
    try:
        inner = unwrapped(network)
    except ValueError as error:
        raise _unsupported(str(error), "static_graph", "leave static_graph at False") from error
    compiled = [name for name, module in inner.named_modules() if _is_compiled(module)]
    if second_order and compiled:
        where = compiled[0] or type(inner).__name__
        hint = "pass the network as it was before torch.compile, or explain it by CAM"
        raise _unsupported(f"'{where}' is compiled, which leaves no double backward", "torch.compile", hint)
    trainable = {name: parameter for name, parameter in inner.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise _unsupported("no parameter is trainable", "requires_grad", "unfreeze what is to be trained")
    return trainable


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _diagnosed(network: nn.Module, error: RuntimeError) -> ConfigError:
    text = str(error).splitlines()[0]
    for sign, option, hint in _CAUSES:
        if sign in str(error):
            owners = [name for name, m in network.named_modules() if getattr(m, option, False) is True]
            where = f" ({len(owners)} modules, the first '{owners[0]}')" if owners else ""
            return _unsupported(f"{option} breaks double backward{where}: {text}", option, hint)
    hint = "some layer has no second derivative: explain by CAM, or by Grad-CAM of a layer behind it"
    return _unsupported(f"double backward fails: {text}", "network", hint)


def _without_gradient(
    trainable: dict[str, nn.Parameter], gradients: Sequence[Tensor | None], heatmap: Tensor, attribute: Attributor
) -> list[str]:
    found = [gradient for gradient in gradients if gradient is not None]
    if not heatmap.requires_grad:
        raise _unsupported("the heatmap carries no gradient to the weights", type(attribute).__name__, None)
    if not all(bool(value.isfinite().all()) for value in (heatmap, *found)):
        raise _unsupported("heatmap or gradients are not finite", type(attribute).__name__, None)
    return [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]


def _unsupported(message: str, field: str, hint: str | None) -> ConfigError:
    return ConfigError("explanation-unsupported", message, field=field, hint=hint)
