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

"""Sanity check of heatmaps: do they depend on what the network has learned, or on the image alone?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

__all__ = ["heatmap_similarity", "randomization_check", "randomized_copies"]

Explain = Callable[[nn.Module], Tensor]


def randomization_check(
    network: nn.Module, image: Tensor, explain: Explain, *, steps: int = 4, brain: Tensor | None = None, seed: int = 0
) -> dict[float, float]:
    """Similarity of a network's heatmap to those of copies whose weights are destroyed from the top layer down.

    The heatmap of a network that has learned something must change when the learning is destroyed: similarity has to
    fall. A heatmap that stays similar shows edges of the image; guided backpropagation is known to.

    Args:
        network: stays as it is: weights, mode, buffers, gradients and hooks.
        image: ``BMH[WD]``; run once to find the order of the layers.
        explain: makes the heatmap of a network, such as ``lambda net: explain_image(image, net, attribute, [1])[0]``.
        steps: number of copies; the last one has no learned weight left.
        brain: where to compare, of the shape of the heatmap or broadcastable to it. Default: everywhere; the air around
            a head looks alike in any heatmap.
        seed: of the randomization.

    Returns:
        Share of the layers that were randomized, ascending, from 0 (similarity 1) to 1 -> similarity of the heatmaps,
        see :func:`heatmap_similarity`.

    Raises:
        ValueError: When ``steps`` is less than 1, or the network has no parameters.

    Reference:
        J. Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018, cascading randomization. Differs from it in:
        each weight tensor is replaced by a random permutation of its own entries instead of a draw from its initial
        distribution, which keeps the size of activations in any network, and needs no knowledge of how a layer was
        initialized. Layers are randomized in ``steps`` groups.

    Example:
        >>> from monai_rrr.attribution import GradCAM
        >>> from monai_rrr.inferers.heatmap import explain_image
        >>> network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> image = torch.rand(1, 1, 6, 6, 6)
        >>> found = randomization_check(
        ...     network, image, lambda net: explain_image(image, net, GradCAM("0"), [1])[0], steps=2
        ... )
        >>> list(found)
        [0.0, 0.5, 1.0]
    """
    first = explain(network)
    found = {0.0: 1.0}
    for share, other in randomized_copies(network, image, steps=steps, seed=seed):
        found[share] = heatmap_similarity(first, explain(other), brain)
    return found


def randomized_copies(
    network: nn.Module, image: Tensor | None = None, *, steps: int = 4, seed: int = 0, **forward_kwargs: Any
) -> Iterator[tuple[float, nn.Module]]:
    """Yield copies of a network with more and more of its layers randomized, from the output to the input.

    Layers are all modules with parameters of their own, in the reverse order of their first call. Each parameter and
    each floating-point buffer with learned statistics is replaced by a random permutation of its entries; one whose
    entries are all equal can't change.

    Args:
        network: is copied, never changed.
        image: ``BMH[WD]``, to run a copy once and see in which order layers are called. None: in that of their
            definition, which makes no difference to the last copy.
        steps: number of copies.
        seed: of the permutations.
        forward_kwargs: further keyword arguments of the network's ``forward``.

    Yields:
        share of the layers randomized in (0, 1], and the copy, in the mode of the network.

    Raises:
        ValueError: As :func:`randomization_check`.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    names = _order(network, image, forward_kwargs)[::-1]
    if not names:
        raise ValueError(f"{type(network).__name__} has no layer with parameters to randomize")
    done = 0
    current = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    for stop in sorted({max(1, round(len(names) * (step + 1) / steps)) for step in range(steps)}):
        for name in names[done:stop]:
            _permute(current.get_submodule(name), generator)
        done = stop
        yield done / len(names), copy.deepcopy(current)


def heatmap_similarity(first: Tensor, second: Tensor, brain: Tensor | None = None) -> float:
    """Spearman's rank correlation of two heatmaps over the brain, in [-1, 1].

    A flat heatmap has lost all structure, and is similar to none: 0.

    Args:
        first: any shape.
        second: the same shape.
        brain: true where to compare, broadcastable to the heatmaps.

    Raises:
        ValueError: When shapes differ.

    Example:
        >>> heatmap = torch.arange(8.0)
        >>> heatmap_similarity(heatmap, heatmap**2), heatmap_similarity(heatmap, torch.ones(8))
        (1.0, 0.0)
    """
    if first.shape != second.shape:
        raise ValueError(f"heatmap {tuple(second.shape)} does not match the other one {tuple(first.shape)}")
    values = [heatmap.detach().float().cpu().numpy() for heatmap in (first, second)]
    if brain is not None:
        inside = np.broadcast_to(np.asarray(brain.cpu()).astype(bool), values[0].shape)
        values = [heatmap[inside] for heatmap in values]
    if any(heatmap.size < 2 or np.ptp(heatmap) == 0 for heatmap in values):
        return 0.0
    return round(float(spearmanr(values[0].ravel(), values[1].ravel()).statistic), 6)


def _order(network: nn.Module, image: Tensor | None, forward_kwargs: Mapping[str, Any]) -> list[str]:
    """Names of the modules with parameters of their own, in the order of their first call."""
    probe = copy.deepcopy(network)
    own = {name: module for name, module in probe.named_modules() if list(module.parameters(recurse=False))}
    if image is None:
        return list(own)
    called: dict[str, None] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            called.setdefault(name)

        return hook

    for name, module in own.items():
        module.register_forward_pre_hook(hook_of(name))
    with torch.no_grad(), torch.random.fork_rng([image.device] if image.device.type == "cuda" else []):
        probe(image, **forward_kwargs)
    # what is never called by itself, such as the parent of a position embedding, goes first: it is closest to the input
    return [name for name in own if name not in called] + list(called)


def _permute(module: nn.Module, generator: torch.Generator) -> None:
    tensors: list[Tensor] = [*module.parameters(recurse=False)]
    tensors += [buffer for name, buffer in module.named_buffers(recurse=False) if name.startswith("running_")]
    with torch.no_grad():
        for tensor in tensors:
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            tensor.copy_(tensor.flatten()[order].reshape(tensor.shape))
