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

"""The networks that ``tied_autoencoder.py`` compares: one encoder, that of MONAI's DynUNet, and many ways to segment.

All return class logits ``BK`` and leave segmentation logits ``BKHWD`` in the layer ``segmentation``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from monai_rrr.attribution import Epsilon, Flat, Gamma, LRPRules, WSquare, ZPlus
from monai_rrr.networks import SegmenterClassifier, TiedAutoencoder

__all__ = ["ARMS", "CLASSES", "build", "scale_parameters"]

CLASSES = 3
ARMS = ("tied", "untied", "unet", "multitask", "cam", "dynunet", "classifier")
PRIOR = -3.0  # logit that every map starts from: a region fills a few percent of the brain
BODY = {"eps": Epsilon(), "gamma": Gamma(), "z+": ZPlus()}
FIRST = {"w2": WSquare(), "flat": Flat(), "body": None}
NORMS: dict[str, Any] = {
    "instance": ("instance", {"affine": True}),
    "batch": "batch",
    "group": ("group", {"num_groups": 4}),
}


def dynunet(filters: Sequence[int], norm: str, outputs: int = CLASSES, **options: Any) -> DynUNet:
    """Two convolutions of 3^3 per level, strides of 2, as many levels as ``filters``."""
    levels = len(filters)
    strides, up = [1] + [2] * (levels - 1), [2] * (levels - 1)
    return DynUNet(3, 4, outputs, [3] * levels, strides, up, filters=filters, norm_name=NORMS[norm], **options)


class MultiTaskUNet(nn.Module):
    """The whole U-Net, and the class head of the tied autoencoder on its deepest features."""

    def __init__(self, unet: DynUNet) -> None:
        super().__init__()
        self.classifier = SegmenterClassifier(unet, CLASSES)
        self.upsamples, self.output_block = unet.upsamples, unet.output_block
        self.segmentation = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Return class logits."""
        values = [image]
        for block in self.classifier.features:
            values.append(block(values[-1]))
        logits: Tensor = self.classifier.head(self.classifier.flatten(self.classifier.pool(values[-1])))
        x = values.pop()
        for up in self.upsamples:
            x = up(x, values.pop())
        self.segmentation(self.output_block(x))
        return logits


class CAMHead(nn.Module):
    """Closed-form CAM, up-sampled, with scale and offset per class: the decoder without any weight of its own."""

    def __init__(self, classifier: SegmenterClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.scale = nn.Parameter(torch.ones(CLASSES))
        self.offset = nn.Parameter(torch.zeros(CLASSES))
        self.segmentation = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Return class logits."""
        features = self.classifier.features(image)
        head = self.classifier.head
        cam = F.conv3d(features, head.weight[..., None, None, None])
        maps = F.interpolate(cam, size=image.shape[2:], mode="trilinear")
        shape = (1, -1, 1, 1, 1)
        self.segmentation(maps * self.scale.reshape(shape) + self.offset.reshape(shape))
        logits: Tensor = cam.mean((2, 3, 4)) + head.bias
        return logits


class DeepUNet(nn.Module):
    """DynUNet as nnU-Net trains it: exclusive classes and outputs of several levels, ``B L K HWD`` in training."""

    def __init__(self, unet: DynUNet) -> None:
        super().__init__()
        self.unet = unet
        self.segmentation = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Return the segmentation logits."""
        maps: Tensor = self.segmentation(self.unet(image))
        return maps


def build(options: Mapping[str, Any]) -> nn.Module:
    """Make the network of an arm.

    Args:
        options: ``arm``, one of ``ARMS``; ``filters``, channels of the levels; and how the tied arm differs from the
            default: ``rule``, ``first``, ``norm``, ``normalize``, ``scale``.
    """
    arm, filters = options["arm"], options["filters"]
    norm = options.get("norm", "batch")
    if arm == "dynunet":
        return DeepUNet(dynunet(filters, "instance", CLASSES + 1, deep_supervision=True, deep_supr_num=2))
    unet = dynunet(filters, norm, act_name=("relu", {"inplace": False}))
    if arm in ("unet", "multitask"):
        nn.init.constant_(unet.output_block.conv.conv.bias, PRIOR)
        return MultiTaskUNet(unet)
    classifier = SegmenterClassifier(unet, CLASSES)
    if arm == "classifier":
        return classifier
    if arm == "cam":
        network: Any = CAMHead(classifier)
    else:
        rules = LRPRules(BODY[options.get("rule", "z+")], Epsilon(), FIRST[options.get("first", "body")])
        normalize = options.get("normalize", True)
        network = TiedAutoencoder(classifier, CLASSES, rules, tied=arm == "tied", normalize=normalize)
        nn.init.constant_(network.scale, options.get("scale", 1.0))
    nn.init.constant_(network.offset, PRIOR)
    return network


def scale_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Scale and offset of the maps, which have to move much farther than weights do."""
    return [p for name, p in network.named_parameters() if name in ("scale", "offset")]
