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

"""What terms on evidence share: which classes are explained, their heatmaps, and where evidence is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.attribution.attributor import Attributor
from monai_rrr.attribution.trace import Trace
from monai_rrr.objectives.mask_control import controlled_mask
from monai_rrr.utils.seeds import step_generator

__all__ = ["CLASSES", "allowed_evidence", "brain_on", "choose_classes", "class_scores", "fused", "heatmaps_of"]

CLASSES = ("positive", "one", "all")


@dataclass(frozen=True)
class Chosen:
    """Classes to explain.

    Attributes:
        class_idx: ``B T``.
        weight: ``B T``, 1 where the class counts.
    """

    class_idx: Tensor
    weight: Tensor


def class_scores(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Logits ``B K``: those of several heads (``B M K``) are averaged over the modalities present."""
    if logits.ndim == 2:
        return logits
    share = _present(batch, logits.shape[1], logits)
    return (logits * share.unsqueeze(2)).sum(1) / share.sum(1, keepdim=True).clamp(min=1)


def choose_classes(trace: Trace, batch: Mapping[str, Any], which: str, seed: int = 0) -> Chosen:
    """Choose the classes to explain by the tags.

    Args:
        trace: for the number of classes.
        batch: ``class_label``, ``B`` class indices (-1 = unknown) or ``B K`` tags (NaN = unknown); ``iteration``.
        which: ``"positive"`` (every class that is present), ``"one"`` (one of them, drawn for each sample: an unbiased
            estimate at the cost of one class) or ``"all"``.
        seed: of the draw, with the iteration.
    """
    count = trace.logits.shape[-1] if trace.logits.ndim < trace.image.ndim else trace.logits.shape[1]
    label = _plain(batch["class_label"], trace.logits.device)
    everything = torch.arange(count, device=label.device).expand(len(label), -1)
    if which == "all":
        return Chosen(everything, torch.ones_like(everything, dtype=torch.float32))
    if label.ndim == 1:
        return Chosen(label.long().clamp(min=0).unsqueeze(1), (label >= 0).float().unsqueeze(1))
    positive = label.nan_to_num(0.0) > 0.5
    if which == "positive":
        return Chosen(everything, positive.float())
    return draw_class(positive, batch, seed)


def draw_class(candidates: Tensor, batch: Mapping[str, Any], seed: int) -> Chosen:
    """Draw one of the candidates (``B K``) for each sample; a pure function of seed and iteration."""
    draw = torch.rand(candidates.shape, generator=step_generator(seed, int(batch.get("iteration", 0))))
    draw = draw.to(candidates.device).masked_fill(~candidates, -1.0)
    return Chosen(draw.argmax(1, keepdim=True), candidates.any(1, keepdim=True).float())


def heatmaps_of(
    attribute: Attributor, trace: Trace, batch: Mapping[str, Any], class_idx: Tensor, sigmoid: bool = False
) -> Tensor:
    """Heatmaps with a modality axis, ``B T M h [w d]``; M is 1 where there is none, absent modalities are 0.

    Modalities that the network folds into the batch axis, sample by sample, are unfolded. With ``sigmoid`` the maps of
    the attributor are taken as logits.
    """
    maps, count = attribute(trace, class_idx), len(trace.image)
    maps = torch.sigmoid(maps) if sigmoid else maps
    if len(maps) != count:
        maps = maps.unflatten(0, (count, -1)).transpose(1, 2)
    elif maps.ndim == trace.image.ndim:
        maps = maps.unsqueeze(2)
    if maps.shape[2] == 1:
        return maps
    share = _present(batch, maps.shape[2], maps)
    return maps * share.reshape(count, 1, -1, *(1,) * (maps.ndim - 3))


def fused(maps: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Mean over the modalities present, ``B T M h [w d]`` to ``B T h [w d]``."""
    if maps.shape[2] == 1:
        return maps[:, :, 0]
    count = _present(batch, maps.shape[2], maps).sum(1).clamp(min=1)
    return maps.sum(2) / count.reshape(-1, *(1,) * (maps.ndim - 2))


def brain_on(batch: Mapping[str, Any], image: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Brain mask ``B 1 h [w d]`` as numbers, at the resolution of a heatmap; 1 everywhere without ``brain``."""
    if "brain" not in batch:
        return torch.ones(len(image), 1, *size, device=image.device)
    brain = _plain(batch["brain"], image.device).float()
    return (_pool("avg", brain, size) > 0.5).float()


def allowed_evidence(
    trace: Trace, batch: Mapping[str, Any], chosen: Chosen, size: torch.Size | tuple[int, ...], control: str, seed: int
) -> tuple[Tensor, Tensor]:
    """Where evidence is allowed, for the chosen classes, and which samples have such a mask.

    Coarser grids take the maximum: a cell is forbidden only where none of its voxels is allowed.

    Args:
        trace: for image and classes.
        batch: ``evidence_mask``, ``B 1 H W [D]`` or ``B K H W [D]``, or with a modality axis ``B 1|K M H W [D]``, 1 =
            evidence is allowed; ``has_mask`` ``B`` (default: all have one).
        chosen: the classes.
        size: of the heatmaps.
        control: see :mod:`monai_rrr.objectives.mask_control`.
        seed: of the control.

    Returns:
        mask ``B T 1|M h [w d]`` and ``B``, both as numbers.

    Raises:
        ValueError: When the batch has no mask, or the mask does not fit.
    """
    if "evidence_mask" not in batch:
        raise ValueError(
            f"this term needs 'evidence_mask', got a batch with {sorted(map(str, batch))}: "
            "monai_rrr.transforms.EvidenceMaskd makes it of a voxel mask"
        )
    image = trace.image
    mask = _plain(batch["evidence_mask"], image.device).float()
    mask = mask.unsqueeze(2) if mask.ndim == image.ndim else mask
    classes = trace.logits.shape[-1] if trace.logits.ndim < image.ndim else trace.logits.shape[1]
    if mask.ndim != image.ndim + 1 or mask.shape[1] not in (1, classes) or mask.shape[3:] != image.shape[2:]:
        raise ValueError(
            f"expected an evidence mask B 1|{classes} (M) {' '.join(map(str, image.shape[2:]))}, "
            f"got {tuple(batch['evidence_mask'].shape)}"
        )
    has = _plain(batch.get("has_mask", torch.ones(len(image))), image.device).reshape(-1) > 0.5
    mask, has = controlled_mask(mask, has, brain_on(batch, image, image.shape[2:]), batch, control, seed)
    mask = _pool("max", mask.flatten(1, 2), size).unflatten(1, mask.shape[1:3])
    if mask.shape[1] > 1:
        index = chosen.class_idx.reshape(*chosen.class_idx.shape, *(1,) * (mask.ndim - 2))
        mask = mask.gather(1, index.expand(-1, -1, *mask.shape[2:]))
    return mask, has.float()


def _pool(kind: str, x: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    pool = getattr(F, f"adaptive_{kind}_pool{len(size)}d")
    out: Tensor = pool(x, tuple(size))
    return out


def _present(batch: Mapping[str, Any], modalities: int, like: Tensor) -> Tensor:
    """``B M`` as numbers; all ones without ``present``."""
    if "present" not in batch:
        return torch.ones(len(like), modalities, device=like.device)
    return _plain(batch["present"], like.device).to(like.dtype)


def _plain(value: Any, device: torch.device) -> Tensor:
    """A plain tensor on the device; MONAI's ``MetaTensor`` would drag its meta data through every operation."""
    return torch.as_tensor(value).as_subclass(Tensor).to(device)
