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

"""One network for any subset of the modalities: a light 3D U-Net whose class maps are its explanation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_rrr.attribution.pooling import masked_log_mean_exp, modality_shares
from monai_rrr.networks.blocks.modality import ModalityConv, ModalityStem
from monai_rrr.networks.blocks.reliability import Reliability
from monai_rrr.networks.blocks.trunk import UNetTrunk
from monai_rrr.utils.enums import MODALITIES

__all__ = ["MultimodalCAMNet"]


class MultimodalCAMNet(nn.Module):
    r"""Class maps and class scores of each modality, from one batched pass over all modalities and samples.

    Each modality has its own branch: stem and head of its own, a trunk that is shared or not, and normalization
    factors of its own. The branches of all present modalities of all samples are stacked along the batch axis, so a
    step is one pass. An absent modality is never fed to a branch. The head is a 1x1x1 convolution with bias; its
    output ``s`` *is* the class activation map, in logits, and the class score is its log-mean-exp over the brain
    (:func:`~monai_rrr.attribution.pooling.masked_log_mean_exp`). The brain is where any modality is not 0: images must
    be skull-stripped, normalized, and 0 outside.

    Args:
        modalities: names of the input channels, in order.
        num_classes: classes ``K``, such as WT, TC, ET (multi-label).
        channels: features per level of the U-Net.
        stride: in-plane output stride, 1 or 2; slices keep their number.
        share: ``"none"`` (a network per modality, as published), ``"norm"`` (shared trunk; stem, head and
            normalization factors per modality) or ``"all"`` (one branch for every modality).
        norm: ``"instance"`` or ``"none"``, see
            :class:`~monai_rrr.networks.blocks.modality.ModalityNorm`; instance normalization leaks the tag to every
            voxel.
        sharpness: ``r`` of the pooling.
        temperature: ``tau`` of the reliability weights, see :mod:`monai_rrr.networks.blocks.reliability`.
        prior: probability of every class in every voxel at the start, in (0, 1).
        output: what ``forward`` returns: ``"logits"`` for training, ``"maps"`` for inference.
        dropout: channel dropout before the head; for uncertainty scoring.

    Shape:
        - image: ``B M H W D``; ``H`` and ``W`` divisible by ``stride * 2 ** (len(channels) - 1)``.
        - present: ``B M`` boolean; default: a modality is present when it is not 0 everywhere.
        - output ``"logits"``: ``B M K``; 0 for an absent modality.
        - output ``"maps"``: ``B K H W D``, in [0, 1]: the sigmoid maps, fused by reliability.
        - layer ``class_maps``: ``B M K h w D`` logits, to be recorded; ``reliability``: ``M K``.
        - buffer ``operating_point``: ``K 2``, threshold and least slice area (mm2); they turn fused maps into masks.

    Raises:
        ValueError: When an argument or the shape of the image does not fit.

    Reference:
        Patel and Dolz, Weakly supervised segmentation with cross-modality equivariant constraints, Medical Image
        Analysis 77 (2022), arXiv 2104.02488. Differs from it: 3D; one network instead of one per modality; no
        normalization; average pooling; bias in the head; pooling over the brain by log-mean-exp, not the mean over all
        voxels; sigmoid per class, not softmax; any subset of modalities per sample.

    Example:
        >>> network = MultimodalCAMNet(channels=(4, 8))
        >>> network(torch.rand(1, 4, 8, 8, 4)).shape
        torch.Size([1, 4, 3])
    """

    def __init__(
        self,
        modalities: Sequence[str] = MODALITIES,
        num_classes: int = 3,
        channels: Sequence[int] = (24, 48, 96),
        stride: int = 2,
        share: str = "norm",
        norm: str = "none",
        sharpness: float = 5.0,
        temperature: float = 0.1,
        prior: float = 0.05,
        output: str = "logits",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if share not in ("none", "norm", "all"):
            raise ValueError(f"share must be none, norm or all, got {share!r}")
        if output not in ("logits", "maps"):
            raise ValueError(f"output must be logits or maps, got {output!r}")
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride}")
        self.modalities = tuple(modalities)
        self.count = len(self.modalities)
        self.num_classes = num_classes
        self.stride = stride
        self.factor = stride * 2 ** (len(channels) - 1)
        self.share = share
        self.sharpness = sharpness
        self.output = output
        if not channels or min(channels) < 1 or num_classes < 1 or not self.modalities:
            raise ValueError(
                f"expected modalities, classes and channels, got {self.modalities}, {num_classes} and {tuple(channels)}"
            )
        if not 0 < prior < 1:
            raise ValueError(f"prior must be in (0, 1), got {prior}")
        if sharpness <= 0:
            raise ValueError(f"sharpness must be positive, got {sharpness}")
        own = 1 if share == "all" else self.count
        self.stem = ModalityStem(self.count, own, channels[0], stride)
        self.trunks = nn.ModuleList(
            UNetTrunk(channels, own if share == "norm" else 1, norm)
            for _ in range(self.count if share == "none" else 1)
        )
        self.dropout = nn.Dropout3d(dropout)
        self.head = ModalityConv(own, channels[0], num_classes, prior)
        self.class_maps = nn.Identity()
        self.reliability = Reliability(self.count, num_classes, temperature)
        # threshold and least area in mm2 of each class, set by calibration on the training tags, saved with the weights
        self.register_buffer("operating_point", torch.tensor([[0.5, 0.0]]).repeat(num_classes, 1))

    def forward(self, image: Tensor, present: Tensor | None = None) -> Tensor:
        """Return logits ``B M K`` or fused maps ``B K H W D``."""
        available = self.available(image, present)
        hidden, rows = self.encode(image, available, present is not None)
        maps = self.class_maps(self.place(self.head(hidden, self.branch(rows)), rows, available))
        weights = self.reliability()
        if self.output == "maps":
            return self.fuse(maps, available, weights, (image != 0).any(1, keepdim=True))
        return self.score(maps, image, available)

    def available(self, image: Tensor, present: Tensor | None) -> Tensor:
        """Check the shapes and return which modalities are there, ``B M`` boolean."""
        if image.dim() != 5 or image.shape[1] != self.count:
            raise ValueError(f"expected B {self.count} H W D, got {image.shape}")
        if present is not None and present.shape != image.shape[:2]:
            raise ValueError(f"present must be {image.shape[:2]}, got {present.shape}")
        if image.shape[2] % self.factor or image.shape[3] % self.factor:
            raise ValueError(f"H and W must be multiples of {self.factor}, got {image.shape}")
        return (image != 0).flatten(2).any(2) if present is None else present.to(torch.bool)

    def branch(self, rows: Tensor) -> Tensor:
        """Which set of weights rows of ``B M`` use, where each modality may have its own."""
        return torch.zeros_like(rows) if self.share == "all" else rows % self.count

    def encode(self, image: Tensor, available: Tensor, skip_absent: bool) -> tuple[Tensor, Tensor]:
        """Features ``P C h w D`` of the branches, and their ``P`` rows of ``B M``: all, or those that are there."""
        features = self.stem(image).flatten(0, 1)
        rows = torch.arange(features.shape[0], device=image.device)
        if skip_absent:
            rows = available.flatten().nonzero().squeeze(1)
            features = features[rows]
        if self.share == "none":
            hidden = torch.zeros_like(features)
            for modality, trunk in enumerate(self.trunks):
                own = (rows % self.count == modality).nonzero().squeeze(1)
                found = trunk(features[own], torch.zeros_like(own))
                hidden = hidden.index_copy(0, own, found.to(hidden.dtype))
        else:
            hidden = features
            for trunk in self.trunks:
                hidden = trunk(hidden, self.branch(rows))
        return self.dropout(hidden), rows

    def place(self, packed: Tensor, rows: Tensor, available: Tensor) -> Tensor:
        """Put rows back where they belong, ``B M ...``; 0 where a modality is absent."""
        count = available.shape[0] * available.shape[1]
        if packed.shape[0] != count:
            placed = packed.new_zeros([count, packed.shape[1], packed.shape[2], packed.shape[3], packed.shape[4]])
            placed = placed.index_copy(0, rows, packed)
        else:
            placed = packed * available.flatten().to(packed.dtype)[:, None, None, None, None]
        out: Tensor = placed.unflatten(0, (available.shape[0], available.shape[1]))
        return out

    def score(self, maps: Tensor, image: Tensor, available: Tensor) -> Tensor:
        """Pool the maps over the brain to logits ``B M K``; 0 for an absent modality."""
        brain = (image != 0).any(1, keepdim=True).to(maps.dtype)
        inside = F.avg_pool3d(brain, (self.stride, self.stride, 1)) > 0.5
        logits = masked_log_mean_exp(maps, inside.unsqueeze(1), [3, 4, 5], self.sharpness)
        return logits * available.unsqueeze(2)

    def fuse(self, maps: Tensor, available: Tensor, weights: Tensor, brain: Tensor) -> Tensor:
        """Average the sigmoid maps over the modalities present, by reliability, at the resolution of the image."""
        share = modality_shares(weights, available)
        fused = (torch.sigmoid(maps.float()) * share[:, :, :, None, None, None]).sum(1)
        if self.stride > 1:
            fused = F.interpolate(fused, size=brain.shape[2:], mode="trilinear", align_corners=False)
        return fused * brain
