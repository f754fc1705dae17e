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

"""The networks that ``annotator_tendency.py`` compares, all on one backbone.

All return logits of a consensus ``BCDHW`` and leave logits of the annotators ``BRCDHW`` in the layer
``annotator_logits``, where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

from monai_rrr.networks import AnnotatorTendencyNet

__all__ = ["ARMS", "SINGLE", "ConsensusNet", "PlainHeads", "build", "start_from"]

CLASSES = 4
SINGLE = {"vote": "vote", "staple": "staple", "em": "em"}
"""Arms that learn one mask per case, and which."""
ARMS = ("ours", "vote", "staple", "em", "separate", "film", "heads", "cm_published", "cm_corrected", "ssn")
RANK = 10


def backbone_of(options: Mapping[str, Any], outputs: int) -> UNet:
    """MONAI's U-Net, that of the bundle without residual units, which cost nine tenths of its time on a CPU."""
    channels = options["channels"]
    return UNet(3, 4, outputs, channels, [2] * (len(channels) - 1))


class ConsensusNet(nn.Module):
    """Backbone and one head: the consensus speaks for all."""

    def __init__(self, backbone: nn.Module, features: int, annotators: int) -> None:
        super().__init__()
        self.annotators = annotators
        self.backbone, self.head = backbone, nn.Conv3d(features, CLASSES, 1)
        self.annotator_logits = nn.Identity()

    def forward(self, image: Tensor, annotated: Tensor | None = None) -> Tensor:
        """Return the logits of the consensus."""
        logits: Tensor = self.head(self.backbone(image))
        self.annotator_logits(logits[:, None].expand(-1, self.annotators, -1, -1, -1, -1))
        return logits


class SeparateNets(nn.Module):
    """A whole network for each annotator; the consensus is the mean of their probabilities."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.annotator_logits = nn.Identity()

    def forward(self, image: Tensor, annotated: Tensor | None = None) -> Tensor:
        """Return the logits of the mean."""
        logits: Tensor = self.annotator_logits(torch.stack([network(image) for network in self.networks], 1))
        return logits.softmax(2).mean(1).clamp(min=1e-8).log()


class PlainHeads(nn.Module):
    """Shared features, a 1x1x1 convolution for each annotator and one for the consensus."""

    def __init__(self, backbone: nn.Module, features: int, annotators: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.consensus_head = nn.Conv3d(features, CLASSES, 1)
        self.heads = nn.ModuleList(nn.Conv3d(features, CLASSES, 1) for _ in range(annotators))
        self.annotator_logits = nn.Identity()

    def forward(self, image: Tensor, annotated: Tensor | None = None) -> Tensor:
        """Return the logits of the consensus."""
        features = self.backbone(image)
        self.annotator_logits(torch.stack([head(features) for head in self.heads], 1))
        logits: Tensor = self.consensus_head(features)
        return logits


class FiLMNet(nn.Module):
    """Features scaled and shifted by who is asked for (one-hot, 0 is the consensus), then convolved on."""

    def __init__(self, backbone: nn.Module, features: int, annotators: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.modulation = nn.Linear(annotators + 1, 2 * features, bias=False)
        nn.init.zeros_(self.modulation.weight)
        self.convolve = nn.Conv3d(features, features, 3, padding=1)
        self.head = nn.Conv3d(features, CLASSES, 1)
        self.annotator_logits = nn.Identity()

    def forward(self, image: Tensor, annotated: Tensor | None = None) -> Tensor:
        """Return the logits of the consensus."""
        features = self.backbone(image)
        everyone = torch.eye(self.modulation.in_features, device=image.device)
        scale, shift = self.modulation(everyone)[..., None, None, None].chunk(2, 1)
        asked = F.relu(features[:, None] * (1 + scale) + shift)
        logits = self.head(F.relu(self.convolve(asked.flatten(0, 1)))).unflatten(0, asked.shape[:2])
        self.annotator_logits(logits[:, 1:])
        found: Tensor = logits[:, 0]
        return found


class ConfusionNet(nn.Module):
    """Truth and a confusion matrix per annotator and voxel (Zhang et al., NeurIPS 2020).

    ``confusion`` records ``B R C C DHW``: column the true class, sums to 1 over what is drawn.
    """

    def __init__(self, backbone: nn.Module, features: int, annotators: int, published: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv3d(features, CLASSES, 1)
        self.matrices = nn.Conv3d(features, annotators * CLASSES**2, 1)
        if not published:  # starts where annotators draw the truth
            bias = torch.full((annotators, CLASSES, CLASSES), -4.0) + 6.0 * torch.eye(CLASSES)
            self.matrices.bias.data.copy_(bias.flatten())  # type: ignore[union-attr]
        self.annotators = annotators
        self.confusion, self.annotator_logits = nn.Identity(), nn.Identity()

    def forward(self, image: Tensor, annotated: Tensor | None = None) -> Tensor:
        """Return the logits of the truth."""
        features = self.backbone(image)
        logits: Tensor = self.head(features)
        matrices = F.softplus(self.matrices(features)).unflatten(1, (self.annotators, CLASSES, CLASSES))
        matrices = self.confusion(matrices / matrices.sum(2, keepdim=True).clamp(min=1e-8))
        drawn = (matrices * logits.softmax(1)[:, None, None]).sum(3)
        self.annotator_logits(drawn.clamp(min=1e-8).log())
        return logits


class StochasticNet(nn.Module):
    """Stochastic segmentation network (Monteiro et al., NeurIPS 2020): a low-rank Gaussian over logits, no names."""

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv3d(features, CLASSES, 1)
        self.spread = nn.Conv3d(features, CLASSES * (RANK + 1), 1)
        self.log_deviation, self.factor = nn.Identity(), nn.Identity()

    def forward(self, image: Tensor, annotated: Tensor | None = None) -> Tensor:
        """Return the mean of the logits."""
        features = self.backbone(image)
        deviation, factor = self.spread(features).split([CLASSES, CLASSES * RANK], 1)
        self.log_deviation(deviation)
        self.factor(factor.unflatten(1, (RANK, CLASSES)))
        logits: Tensor = self.head(features)
        return logits


def start_from(network: nn.Module, start: ConsensusNet) -> None:
    """Begin at a network that was trained on the votes: backbone, and the head of the consensus for everyone."""
    backbone, head = start.backbone.state_dict(), start.head.state_dict()
    if isinstance(network, SeparateNets):
        for one in network.networks:
            one[0].load_state_dict(backbone)  # type: ignore[index]
            one[1].load_state_dict(head)  # type: ignore[index]
        return
    network.backbone.load_state_dict(backbone)  # type: ignore[union-attr]
    if isinstance(network, (PlainHeads, AnnotatorTendencyNet)):
        network.consensus_head.load_state_dict(head)
    else:
        network.head.load_state_dict(head)  # type: ignore[union-attr]
    if isinstance(network, PlainHeads):
        for one in network.heads:
            one.load_state_dict(head)


def build(options: Mapping[str, Any], annotators: Sequence[str]) -> nn.Module:
    """Make the network of an arm.

    Args:
        options: ``arm``, one of ``ARMS``; ``channels`` of the backbone and its ``features``; ``slots``, ``stride`` and
            ``width`` of the method.
        annotators: their pseudonyms.
    """
    arm, features, count = options["arm"], options["features"], len(annotators)
    if arm == "separate":
        nets = [nn.Sequential(backbone_of(options, features), nn.Conv3d(features, CLASSES, 1)) for _ in annotators]
        return SeparateNets(nets)
    backbone = backbone_of(options, features)
    if arm in SINGLE:
        return ConsensusNet(backbone, features, count)
    if arm == "heads":
        return PlainHeads(backbone, features, count)
    if arm == "film":
        return FiLMNet(backbone, features, count)
    if arm == "ssn":
        return StochasticNet(backbone, features)
    if arm in ("cm_published", "cm_corrected"):
        return ConfusionNet(backbone, features, count, arm == "cm_published")
    return AnnotatorTendencyNet(
        annotators,
        CLASSES,
        backbone,
        features,
        width=options["width"],
        slots=options["slots"],
        stride=options["stride"],
        kernel_size=options.get("kernel_size", 1),
        queue=1024,
    )
