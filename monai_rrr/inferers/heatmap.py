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

"""Heatmaps as a MONAI prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor, nn

from monai_rrr.attribution.attributor import Attributor
from monai_rrr.attribution.exclusive import evaluating
from monai_rrr.attribution.normalize import resize_heatmap
from monai_rrr.attribution.trace import Trace, record
from monai_rrr.errors import InferenceError
from monai_rrr.inferers.memory import is_out_of_memory, out_of_memory

__all__ = ["HeatmapInferer", "explain_image"]


class HeatmapInferer(Inferer):
    """Explain a network and return the heatmaps as if they were its prediction.

    For MONAI's evaluators, post-processing transforms and writers. Works under ``torch.no_grad`` and
    ``torch.inference_mode``. The network is explained in evaluation mode. It is left as it was: its modes, buffers,
    ``requires_grad`` flags, gradients and hooks; and so is the state of the random number generators. Threads that
    share a network take turns.

    Args:
        attribute: makes the heatmaps, such as :class:`~monai_rrr.attribution.GradCAM`. For a segmentation network its
            ``score`` says over which voxels a class is scored.
        class_idx: classes to explain, the same for every sample. Default: the predicted class of each sample, the
            largest logit; a segmentation network predicts a class per voxel and needs ``class_idx``.
        normalize: applied to the heatmaps on the grid of the image, such as
            :func:`~monai_rrr.attribution.normalize_max`. Default: none.

    Shape:
        - inputs: ``BMH[WD]``.
        - output: ``BTH[WD]``, float32, detached, larger is more evidence; a ``MetaTensor`` with the meta data of the
          inputs if these are one.

    Raises:
        ValueError: When ``class_idx`` is empty, negative or no class of the network, or missing for a segmentation
            network.
        InferenceError: ``heatmap-not-finite``, when logits or heatmaps are not finite, or ``out-of-memory``.
        TypeError: When the network is no ``nn.Module``, or further positional arguments are given; only keyword
            arguments reach the network.

    Note:
        Sees the whole volume at once: gradients of one window would ignore the others. For windows, pass
        ``lambda window: inferer(window, network)`` as the predictor of a ``SlidingWindowInferer``, without
        ``normalize``, and normalize the stitched map; what it shows is then the evidence inside each window.

    Example:
        >>> from monai_rrr.attribution import GradCAM, normalize_max
        >>> network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> inferer = HeatmapInferer(GradCAM("0"), class_idx=[0, 2], normalize=normalize_max)
        >>> with torch.no_grad():
        ...     inferer(torch.rand(1, 1, 8, 8, 8), network).shape
        torch.Size([1, 2, 8, 8, 8])
    """

    def __init__(
        self,
        attribute: Attributor,
        class_idx: int | Sequence[int] | None = None,
        normalize: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.attribute = attribute
        self.class_idx = (class_idx,) if isinstance(class_idx, int) else None if class_idx is None else tuple(class_idx)
        self.normalize = normalize
        if self.class_idx is not None and (not self.class_idx or min(self.class_idx) < 0):
            raise ValueError(f"class_idx must name at least one class, 0 or more, got {class_idx}")

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return the heatmaps of a batch; keyword arguments are passed on to the network."""
        if not isinstance(network, nn.Module):
            raise TypeError(f"HeatmapInferer needs a torch.nn.Module as network, got {type(network).__name__}")
        if args:
            raise TypeError(f"HeatmapInferer passes on keyword arguments only, got {len(args)} positional ones")
        heatmap, _, _ = explain_image(inputs, network, self.attribute, self.class_idx, **kwargs)
        if self.normalize is not None:
            heatmap = self.normalize(heatmap)
        result: Tensor = convert_to_dst_type(heatmap, inputs, dtype=heatmap.dtype)[0]
        return result


def explain_image(
    image: Tensor,
    network: nn.Module,
    attribute: Attributor,
    class_idx: Sequence[int] | None = None,
    **forward_kwargs: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Explain a network once, under the promises of :class:`HeatmapInferer`.

    Args:
        image: ``BMH[WD]``.
        network: any module.
        attribute: makes the heatmaps.
        class_idx: classes to explain; default: the predicted class of each sample.
        forward_kwargs: further keyword arguments of the network's ``forward``.

    Returns:
        the unnormalized heatmaps ``BTH[WD]`` in float32 on the grid of the image, the explained classes ``BT``, and the
        logits; all detached.
    """
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    try:
        with evaluating(network), _differentiable(plain.device):
            # the copy requires grad, so that a network whose parameters are frozen can be explained as well
            leaf = plain.detach().clone().requires_grad_(True)
            trace = record(network, leaf.clone(), attribute.layers, update_statistics=False, **forward_kwargs)
            classes = _classes(trace, class_idx)
            heatmap = attribute(trace, classes).detach()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        hint = "use a coarser spacing, explain in windows, or use another device"
        raise out_of_memory(plain.shape, "the whole volume at once", hint) from None
    for what, values in (("logits", trace.logits), ("heatmap", heatmap)):
        if not torch.isfinite(values).all():
            message = f"expected finite {what} of classes {classes.tolist()}, got NaN or infinite ones"
            hint = "look at the weights, the precision and the images"
            raise InferenceError("heatmap-not-finite", message, field=what, hint=hint)
    if heatmap.shape[0] != plain.shape[0]:
        raise ValueError(f"expected one heatmap per sample, batch {plain.shape[0]}, got {tuple(heatmap.shape)}")
    return resize_heatmap(heatmap.float(), plain.shape[2:]), classes, trace.logits.detach()


def _classes(trace: Trace, class_idx: Sequence[int] | None) -> Tensor:
    logits, dense = trace.logits, trace.logits.ndim == trace.image.ndim
    if class_idx is None:
        if dense:
            raise ValueError(
                f"a segmentation network (logits {tuple(logits.shape)}) predicts a class per voxel: give class_idx"
            )
        return logits.detach().reshape(logits.shape[0], -1, logits.shape[-1]).mean(1).argmax(1, keepdim=True)
    classes = logits.shape[1] if dense else logits.shape[-1]
    if not class_idx or min(class_idx) < 0 or max(class_idx) >= classes:
        raise ValueError(f"class_idx must be in 0..{classes - 1}, got {list(class_idx)}")
    return torch.tensor(class_idx, device=logits.device).expand(trace.image.shape[0], -1)


@contextmanager
def _differentiable(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        yield
