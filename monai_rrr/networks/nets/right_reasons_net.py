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

"""One network for tags, masks by several annotators, and marks of where evidence may lie."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

from monai_rrr.networks.blocks.modality import ModalityConv, ModalityStem
from monai_rrr.networks.blocks.prototype_bank import PrototypeBank
from monai_rrr.networks.blocks.reliability import Reliability
from monai_rrr.networks.nets.annotator_tendency import AnnotatorTendencyNet, TendencyOutput
from monai_rrr.networks.nets.multimodal import MultimodalCAMNet

__all__ = ["RightReasonsNet", "RightReasonsOutput", "TellsWhoNet"]

# what AnnotatorTendencyNet lets be recorded; known here under the same names
_LAYERS = ("consensus", "annotator_logits", "embedding", "signed_distance", "kernels", "scale", "prior")
_BANKS = ("shared_prototypes", "tendency_prototypes")


class RightReasonsOutput(NamedTuple):
    """What the network returns: the class scores first, so that terms on class maps see them as its logits.

    Attributes:
        class_scores: logits of the regions, ``B M K``; 0 for an absent modality.
        consensus: logits of the tissue classes, ``BCHWD``.
        annotators: the same for every annotator, ``BRCHWD``.
    """

    class_scores: Tensor
    consensus: Tensor
    annotators: Tensor


class RightReasonsNet(nn.Module):
    r"""Class maps of every modality, and on the features behind them a consensus and each annotator's version of it.

    .. math:: F = \frac1n \sum_{m\,\text{present}} \big(\uparrow P_m h_m + S_m * x_m\big), \qquad
              (z_0, z_r) = \mathrm{tendency}(\mathrm{decoder}(F))

    with :math:`h_m` the features of a modality from which :class:`MultimodalCAMNet` makes its class maps, projected by
    1x1x1 weights of the modality, and a 3x3x3 convolution of each image that brings back the resolution. The sum runs
    over the modalities that are there: any subset works, and an absent one changes nothing. Tags and marks of evidence
    reach the decoder through the shared features, masks reach the class maps.

    Args:
        cam: makes features and class maps.
        tendency: consensus and annotators; its backbone, the decoder, takes ``features`` channels in. Default: six
            annotators ``a1`` to ``a6`` on a small ``UNet`` of 16 features.
        features: channels of ``F``.
        output: ``"all"`` returns :class:`RightReasonsOutput`, ``"consensus"`` its second part, for parts of MONAI that
            expect one tensor.

    Shape:
        - image: ``B M H W D``, 0 outside the brain, of sizes that both parts accept; present: ``B M`` boolean, default:
          a modality is there when it is not 0 everywhere; annotated: ``B R`` boolean, who drew the case.
        - layers to record: ``cam.class_maps``, ``cam.reliability``, ``class_scores`` ``B M K``, and those of
          :class:`AnnotatorTendencyNet`, under their names there.

    Raises:
        ValueError: When ``output`` is unknown or the shape of the image does not fit.

    Reference:
        Patel and Dolz, arXiv 2104.02488 (class maps); after the abstract of Cheng et al., TAX, arXiv 2302.09561
        (annotators); the mean over the features of the modalities that are there is that of Havaei et al., HeMIS,
        arXiv 1607.05194, without the variance. That both share features is ours.

    Example:
        >>> import torch
        >>> decoder = UNet(3, in_channels=8, out_channels=8, channels=(4, 8), strides=(2,))
        >>> tendency = AnnotatorTendencyNet(["a", "b"], backbone=decoder, features=8, queue=1024)
        >>> network = RightReasonsNet(MultimodalCAMNet(channels=(4,)), tendency, features=8)
        >>> [tuple(part.shape) for part in network(torch.rand(1, 4, 8, 8, 4))]
        [(1, 4, 3), (1, 4, 8, 8, 4), (1, 2, 4, 8, 8, 4)]
    """

    def __init__(
        self,
        cam: MultimodalCAMNet | None = None,
        tendency: AnnotatorTendencyNet | None = None,
        features: int = 16,
        output: str = "all",
    ) -> None:
        super().__init__()
        if output not in ("all", "consensus"):
            raise ValueError(f"output must be all or consensus, got {output!r}")
        cam = MultimodalCAMNet(channels=(16,)) if cam is None else cam
        if tendency is None:
            decoder = UNet(3, features, 16, channels=(16, 32, 64), strides=(2, 2), num_res_units=1)
            tendency = AnnotatorTendencyNet([f"a{n}" for n in range(1, 7)], backbone=decoder, features=16)
        self.output = output
        self.class_scores = nn.Identity()
        for name in (*_LAYERS, *_BANKS):
            # before `tendency`: a module of two names is found under the first
            self.add_module(name, getattr(tendency, name))
        self.cam, self.tendency = cam, tendency
        own, width = cam.stem.weight.shape[:2]
        self.project = ModalityConv(own, width, features, prior=0.5)
        self.detail = ModalityStem(cam.count, own, features, stride=1)

    def forward(
        self, image: Tensor, present: Tensor | None = None, annotated: Tensor | None = None
    ) -> RightReasonsOutput | Tensor:
        """Return class scores, the consensus and every annotator's version of it."""
        cam = self.cam
        available = cam.available(image, present)
        hidden, rows = cam.encode(image, available, present is not None)
        maps = cam.class_maps(cam.place(cam.head(hidden, cam.branch(rows)), rows, available))
        cam.reliability()
        scores = self.class_scores(cam.score(maps, image, available))
        shared = self._shared(image, available, cam.place(self.project(hidden, cam.branch(rows)), rows, available))
        found = cast(TendencyOutput, self.tendency(shared, annotated))
        return RightReasonsOutput(scores, *found) if self.output == "all" else found.consensus

    def _shared(self, image: Tensor, available: Tensor, projected: Tensor) -> Tensor:
        """Mean features ``B F H W D`` of the modalities that are there."""
        there = available.to(image.dtype)
        share = (there / there.sum(1, keepdim=True).clamp(min=1))[:, :, None, None, None, None]
        coarse = (projected * share).sum(1)
        fine = (self.detail(image) * share).sum(1)
        if coarse.shape[2:] != fine.shape[2:]:
            coarse = F.interpolate(coarse, size=fine.shape[2:], mode="trilinear", align_corners=False)
        return F.leaky_relu(coarse + fine, 0.1)

    @property
    def annotators(self) -> tuple[str, ...]:
        """Ids of the annotators."""
        return self.tendency.annotators

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the input channels."""
        return self.cam.modalities

    @property
    def num_classes(self) -> int:
        """Tissue classes ``C`` of the consensus."""
        return self.tendency.num_classes

    @property
    def operating_point(self) -> Tensor:
        """Thresholds and least areas of the heatmaps, ``K 2``; a buffer of ``cam``."""
        return cast(Tensor, self.cam.operating_point)

    @property
    def reliability(self) -> Reliability:
        """Weights of the modalities; a part of ``cam``."""
        return self.cam.reliability

    @property
    def rho(self) -> Tensor:
        """How much each annotator counts for the consensus, ``R``; a buffer of ``tendency``."""
        return self.tendency.rho

    @property
    def prior_weight(self) -> Tensor:
        """Prior of the assignment, ``1+R``; a buffer of ``tendency``."""
        return self.tendency.prior_weight

    @property
    def shared_bank(self) -> PrototypeBank:
        """Prototypes that all annotators share; a part of ``tendency``."""
        return self.tendency.shared_bank

    @property
    def tendency_bank(self) -> PrototypeBank:
        """Prototypes of each annotator; a part of ``tendency``."""
        return self.tendency.tendency_bank

    @property
    def tendencies(self) -> nn.ModuleList:
        """Kernels of each annotator; a part of ``tendency``."""
        return self.tendency.tendencies

    @property
    def freeze_backbone(self) -> bool:
        """Whether the decoder stays in evaluation while training."""
        return self.tendency.freeze_backbone

    @freeze_backbone.setter
    def freeze_backbone(self, frozen: bool) -> None:
        self.tendency.freeze_backbone = frozen

    def tendency_parameters(self) -> list[nn.Parameter]:
        """Return what makes annotators differ, see :class:`AnnotatorTendencyNet`."""
        return self.tendency.tendency_parameters()


TellsWhoNet = AnnotatorTendencyNet | RightReasonsNet
"""Networks of several annotators, whose layers, banks and buffers have the same names."""
