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

"""A classifier whose relevance maps are segmentation logits: the decoder is the encoder, run backwards."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_rrr.attribution.attributor import check_classes, class_columns
from monai_rrr.attribution.lrp import propagate, read_relevance_graph
from monai_rrr.attribution.lrp_layers import LayerRule
from monai_rrr.attribution.lrp_placement import LRPRules

__all__ = ["TiedAutoencoder"]


class TiedAutoencoder(nn.Module):
    r"""Segment with a classifier: each class logit is unrolled into a relevance map with the encoder's own weights.

    .. math:: s_c(p) = \tau_c\, \frac{\sum_m R_{cm}(p)}{\bar r_c} + b_c, \qquad
              \bar r_c = \mathrm{sg}\, \operatorname{mean}_{p \in \Omega} \big|\textstyle\sum_m R_{cm}(p)\big|

    Relevance sums to the class logit whatever the number of voxels, so a map needs a scale and an offset of its own to
    be a segmentation logit. The parameters are those of the encoder, ``tau`` and ``b``: the decoder looks the encoder's
    ``Parameter`` objects up each time, so that the tie can't break. One forward pass of the encoder serves the class
    scores and all maps; every map adds about one more.

    Args:
        encoder: the classifier, image to logits ``BK``: a MONAI ``ResNet`` or ``DenseNet``, an
            :class:`~monai_rrr.networks.SegmenterClassifier`, a ``Sequential``, or anything that
            :class:`~monai_rrr.attribution.UnrolledLRP` can read.
        num_classes: ``K``.
        rules: which relevance rule goes where. Default: :class:`~monai_rrr.attribution.LRPRules`.
        layer_rules: rules of further kinds of layers.
        tied: ``False`` decodes with a copy of the encoder's weights that trains apart, as the released code of the
            paper does: for comparison only.
        normalize: divide by ``r``; ``False`` leaves the scale to ``tau`` alone.
        checkpointing: apply the relevance rule of each layer again in ``backward``, and keep only what flows between
            layers in memory.
        output: what ``forward`` returns: ``"logits"`` for training, ``"segmentation"`` (logits) for inference.

    Shape:
        - image: ``BMH[WD]``, 0 outside the brain.
        - present: ``BM``; absent modalities are set to 0. Default: all are present.
        - class_idx: ``BT``, the classes to decode. Default: all, in order.
        - output ``"logits"``: ``BK``; ``"segmentation"``: ``BTH[WD]``.
        - layers to record: ``class_logits`` ``BK``; ``relevance`` ``BTMH[WD]``, which is the modality attribution;
          ``segmentation`` ``BTH[WD]`` logits; and ``gain`` ``tau / r`` ``BT1[11]``: relevance times gain is what each
          modality adds to the logits. The last three are at least float32.
        - buffer ``operating_point``: ``K 2``, threshold and least slice area (mm2); they turn maps into masks.

    Raises:
        ValueError: When an argument does not fit, or the encoder can't be read; see
            :func:`~monai_rrr.attribution.lrp_read.read_network`.

    Reference:
        X. Yu et al., Model guidance via explanations turns image classifiers into segmentation models, arXiv
        2407.03009. Differs from it in: 3D; weights that stay tied; one encoder pass and one statistics update per step;
        ``tau`` and ``b``, which are fixed to 1 and 0 there; z+ rules and normalization by folding; subsets of classes.

    Example:
        >>> from monai.networks.nets import resnet18
        >>> encoder = resnet18(n_input_channels=4, num_classes=3, widen_factor=0.125, conv1_t_stride=1)
        >>> network = TiedAutoencoder(encoder, num_classes=3, output="segmentation")
        >>> network(torch.rand(2, 4, 16, 16, 16)).shape
        torch.Size([2, 3, 16, 16, 16])
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        rules: LRPRules | None = None,
        layer_rules: Mapping[Any, LayerRule] | None = None,
        tied: bool = True,
        normalize: bool = True,
        checkpointing: bool = False,
        output: str = "logits",
    ) -> None:
        super().__init__()
        if output not in ("logits", "segmentation"):
            raise ValueError(f"output must be logits or segmentation, got {output!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.encoder = encoder
        self.decoder = None if tied else copy.deepcopy(encoder)
        self.num_classes = num_classes
        self.rules = rules or LRPRules()
        self.normalize, self.checkpointing, self.output = normalize, checkpointing, output
        self.graph = read_relevance_graph(encoder, layer_rules)
        self.scale = nn.Parameter(torch.ones(num_classes))
        self.offset = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("operating_point", torch.tensor([[0.5, 0.0]]).repeat(num_classes, 1))
        self.class_logits = nn.Identity()
        self.relevance = nn.Identity()
        self.gain = nn.Identity()
        self.segmentation = nn.Identity()

    def forward(self, image: Tensor, present: Tensor | None = None, class_idx: Tensor | None = None) -> Tensor:
        """Return class logits ``BK`` or segmentation logits ``BTH[WD]``."""
        if present is not None:
            if present.shape != image.shape[:2]:
                raise ValueError(f"present must be {tuple(image.shape[:2])}, got {tuple(present.shape)}")
            image = image * present.reshape(*present.shape, *(1,) * (image.ndim - 2)).to(image.dtype)
        values = self.graph.run(self.encoder, image)
        logits: Tensor = self.class_logits(values[self.graph.output])
        if logits.shape[1:] != (self.num_classes,):
            raise ValueError(f"the encoder must return logits B {self.num_classes}, got {tuple(logits.shape)}")
        if class_idx is None:
            class_idx = torch.arange(self.num_classes, device=image.device).expand(image.shape[0], -1)
        relevance = self.relevance(self._decode(values, class_idx))
        with torch.autocast(image.device.type, enabled=False):
            maps = self.segmentation(self._logits(relevance, class_idx, image))
        return logits if self.output == "logits" else maps

    def _decode(self, values: Sequence[Any], class_idx: Tensor) -> Tensor:
        decoder = self.encoder
        if self.decoder is not None:
            decoder = self.decoder
            with torch.no_grad():
                for own, other in zip(self.decoder.buffers(), self.encoder.buffers(), strict=True):
                    own.copy_(other)

        return propagate(
            self.graph,
            decoder,
            values,
            class_idx,
            self.rules,
            recompute=self.decoder is not None,
            checkpointing=self.checkpointing,
        )

    def _logits(self, relevance: Tensor, class_idx: Tensor, image: Tensor) -> Tensor:
        maps = relevance.sum(2)
        columns = class_columns(class_idx, maps.shape[0])
        check_classes(columns, self.num_classes)
        ones = (1,) * (maps.ndim - 2)
        gain, offset = (p[columns].reshape(*columns.shape, *ones).to(maps.dtype) for p in (self.scale, self.offset))
        if self.normalize:
            brain = (image != 0).any(1, keepdim=True).to(maps.dtype)
            dims = tuple(range(2, maps.ndim))
            size = (maps.detach().abs() * brain).sum(dims, keepdim=True) / brain.sum(dims, keepdim=True).clamp(min=1)
            gain = gain / size.clamp(min=1e-12)
        logits: Tensor = self.gain(gain) * maps + offset
        return logits
