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

"""One segmentation per annotator beside their consensus (TAX-style, re-derived from the abstract)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from monai.networks.nets import SegResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_rrr.errors import CheckpointError
from monai_rrr.losses.reduction import full_precision
from monai_rrr.networks.blocks.prototype_bank import PrototypeBank
from monai_rrr.networks.blocks.tendency import AnnotatorKernels, TendencyEmbedding

__all__ = ["AnnotatorTendencyNet", "TendencyOutput"]

_BYTES = 64


class TendencyOutput(NamedTuple):
    """What the network returns: logits, the consensus first.

    Attributes:
        consensus: ``z_0``, ``BCDHW``.
        annotators: ``z_r``, ``BRCDHW``, in the order of ``network.annotators``.
    """

    consensus: Tensor
    annotators: Tensor


class AnnotatorTendencyNet(nn.Module):
    r"""A consensus, and kernel subsets that say how each annotator departs from it. **TAX-style, re-derived**.

    .. math:: z_0 = W_0 F, \qquad \tilde\Delta_r = \Delta_r - \sum_s \rho_s \Delta_s, \qquad
              z_r = z_0 + \tilde\Delta_r, \qquad p_r = \mathrm{softmax}\, z_r / T_r

    with :math:`F` the features of any 3D segmentation network and :math:`\Delta_r` of
    :class:`~monai_rrr.networks.blocks.tendency.AnnotatorKernels`. As :math:`\sum_r \rho_r \tilde\Delta_r = 0`, the
    consensus is the log-opinion pool of the annotators and nothing can be moved between both. All start at the
    consensus. The kernels of annotators who did not draw a case get no gradient from it, by ``annotated``: the values
    are the same, but the centering passes none on to them. The temperatures ``T_r``, that of the consensus first, are
    buffers: 1 in training, and chosen on cases of their own when it has ended, by
    :class:`~monai_rrr.handlers.AnnotatorTemperature`. The logits that the network gives are divided by them.

    Beside it: a bank of prototypes (buffers only), and a head for signed distances to the boundaries of the regions,
    which makes the features linear in the distance, so that a tendency of some millimeters is within reach of kernels
    of one voxel.

    The ids are part of the weights (``annotator_ids``): weights of others in the same number, which would name the
    masks wrongly, are refused with a :class:`~monai_rrr.errors.CheckpointError`, ``checkpoint-annotators``.

    Args:
        annotators: their ids, sorted; pseudonyms of up to 64 bytes.
        num_classes: ``C``, classes that exclude each other, 0 is the background.
        backbone: image to features ``BFDHW``; any MONAI segmentation network with ``F`` output channels. Default:
            a ``SegResNet`` with 16 initial filters.
        features: ``F``.
        in_channels: modalities, for the default backbone.
        regions: nested regions whose distances are predicted.
        width: dimensions ``E`` of the embedding.
        slots: kernels and prototypes ``M`` of each annotator and class.
        shared_slots: prototypes of each class that all share.
        stride: 2 computes embedding and kernels on half the resolution: an eighth of time and memory.
        temperature: ``tau`` of the kernels, a setting that the sources leave open.
        queue: embeddings that the bank remembers for each group.
        checkpointing: compute each annotator's response again in ``backward`` instead of keeping it in memory.
        output: ``"tendency"`` returns :class:`TendencyOutput`, ``"consensus"`` its first part, for parts of MONAI that
            expect one tensor.
        kernel_size: voxels along an edge of the kernels, 1 or 3.

    Shape:
        - image: ``BMDHW``; annotated: ``BR`` boolean, who drew the case; default: all.
        - layers to record: ``consensus`` ``BCDHW``, ``annotator_logits`` ``BRCDHW``, ``embedding`` ``BEdhw``,
          ``signed_distance`` ``B regions DHW`` in mm, ``kernels`` ``RCME``, ``scale`` scalar, ``shared_prototypes``
          ``C K E``, ``tendency_prototypes`` ``RCME``, ``prior`` ``1+R``.

    Raises:
        ValueError: When annotators are none, twice, not sorted or too long, an argument does not fit, or the backbone
            does not return ``BFDHW``.

    Reference:
        After the abstract of Cheng, Shiau, Yang and Wang, TAX, arXiv 2302.09561; equations, bank and stages are ours.

    Example:
        >>> from monai.networks.nets import UNet
        >>> backbone = UNet(3, in_channels=4, out_channels=8, channels=(4, 8), strides=(2,))
        >>> network = AnnotatorTendencyNet(["a", "b"], backbone=backbone, features=8, queue=1024)
        >>> output = network(torch.rand(1, 4, 8, 8, 8))
        >>> output.consensus.shape, output.annotators.shape
        (torch.Size([1, 4, 8, 8, 8]), torch.Size([1, 2, 4, 8, 8, 8]))
        >>> sum(p.numel() for p in network.add_annotator("c"))
        1025
    """

    annotator_ids: Tensor
    rho: Tensor
    prior_weight: Tensor
    temperatures: Tensor

    def __init__(
        self,
        annotators: Sequence[str],
        num_classes: int = 4,
        backbone: nn.Module | None = None,
        features: int = 32,
        in_channels: int = 4,
        regions: int = 3,
        width: int = 64,
        slots: int = 4,
        shared_slots: int = 8,
        stride: int = 1,
        temperature: float = 1.0,
        queue: int = 4096,
        checkpointing: bool = False,
        output: str = "tendency",
        kernel_size: int = 1,
    ) -> None:
        super().__init__()
        if output not in ("tendency", "consensus"):
            raise ValueError(f"output must be tendency or consensus, got {output!r}")
        if not annotators or list(annotators) != sorted(set(annotators)):
            raise ValueError(f"annotators must be sorted ids, each once, got {list(annotators)}")
        self.annotators: tuple[str, ...] = tuple(annotators)
        self.num_classes, self.features, self.slots, self.width = num_classes, features, slots, width
        self.temperature, self.checkpointing, self.output = temperature, checkpointing, output
        self.kernel_size = kernel_size
        self.freeze_backbone = False
        if backbone is None:
            backbone = SegResNet(init_filters=16, in_channels=in_channels, out_channels=features)
        self.backbone = backbone
        self.consensus_head = nn.Conv3d(features, num_classes, 1)
        self.distance_head = nn.Conv3d(features, regions, 1)
        self.embed = TendencyEmbedding(features, width, stride)
        self.log_scale = nn.Parameter(torch.tensor(8.0).log())
        count = len(self.annotators)
        self.tendencies = nn.ModuleList(self._new_kernels() for _ in range(count))
        self.shared_bank = PrototypeBank(num_classes, shared_slots, width, queue)
        self.tendency_bank = PrototypeBank(count * num_classes, slots, width, queue)
        self.register_buffer("annotator_ids", _as_bytes(self.annotators))
        self.register_buffer("rho", torch.full((count,), 1 / count))
        self.register_buffer("prior_weight", torch.full((1 + count,), 1 / (1 + count)))
        self.register_buffer("temperatures", torch.ones(1 + count))
        self.consensus, self.annotator_logits, self.embedding = nn.Identity(), nn.Identity(), nn.Identity()
        self.signed_distance, self.kernels, self.scale = nn.Identity(), nn.Identity(), nn.Identity()
        self.prior, self.shared_prototypes, self.tendency_prototypes = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, image: Tensor, annotated: Tensor | None = None) -> TendencyOutput | Tensor:
        """Return the logits of the consensus and of every annotator."""
        features = self.backbone(image)
        if not isinstance(features, Tensor) or features.ndim != 5 or features.shape[1] != self.features:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"the backbone must return features B {self.features} D H W, got {shape}")
        consensus = full_precision(self.consensus_head(features))
        self.signed_distance(full_precision(self.distance_head(features)))
        embedding = self.embedding(self.embed(features))
        scale = self.scale(full_precision(self.log_scale).exp())
        departure = torch.stack([self._departure(t, embedding, scale, image.shape[2:]) for t in self.tendencies], 1)
        if annotated is not None:
            if annotated.shape != departure.shape[:2]:
                raise ValueError(f"annotated must be {tuple(departure.shape[:2])}, got {tuple(annotated.shape)}")
            drawn = annotated.bool()[:, :, None, None, None, None]
            departure = torch.where(drawn, departure, departure.detach())
        with torch.autocast(image.device.type, enabled=False):
            center = torch.einsum("r,brcdhw->bcdhw", self.rho.to(departure.dtype), departure)
            logits = (consensus - center)[:, None] + departure
            logits = self.annotator_logits(logits / self.temperatures[1:, None, None, None, None])
            consensus = self.consensus(consensus / self.temperatures[0])
        self.kernels(torch.stack([tendency.kernels() for tendency in self._subsets()]))
        self.shared_prototypes(self.shared_bank.prototype)
        self.tendency_prototypes(self.tendency_bank.prototype.unflatten(0, (-1, self.num_classes)))
        self.prior(self.prior_weight)
        return TendencyOutput(consensus, logits) if self.output == "tendency" else consensus

    def _subsets(self) -> list[AnnotatorKernels]:
        return cast("list[AnnotatorKernels]", list(self.tendencies))

    def _new_kernels(self) -> AnnotatorKernels:
        return AnnotatorKernels(self.num_classes, self.slots, self.width, self.temperature, self.kernel_size)

    def _departure(self, tendency: nn.Module, embedding: Tensor, scale: Tensor, size: Sequence[int]) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            response: Tensor = checkpoint(tendency, embedding, scale, use_reentrant=False)
        else:
            response = tendency(embedding, scale)
        if response.shape[2:] == torch.Size(size):
            return response
        return F.interpolate(response, size=tuple(size), mode="trilinear", align_corners=False)

    def train(self, mode: bool = True) -> AnnotatorTendencyNet:
        """Switch between training and evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        ids = state_dict.get(f"{prefix}annotator_ids")
        if (
            isinstance(ids, Tensor)
            and ids.shape == self.annotator_ids.shape
            and not torch.equal(ids.to(self.annotator_ids), self.annotator_ids)
        ):
            found = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in ids.tolist()]
            message = (
                f"expected weights of the annotators {', '.join(self.annotators)}, got those of {', '.join(found)}"
            )
            hint = "give the annotators of the training (`annotators`)"
            raise CheckpointError("checkpoint-annotators", message, hint=hint)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def tendency_parameters(self) -> list[nn.Parameter]:
        """Return what makes annotators differ: kernels, ``gamma`` and the scale ``s``."""
        return [*self.tendencies.parameters(), self.log_scale]

    @torch.no_grad()
    def set_reliability(self, rho: Tensor, shared: float | None = None) -> None:
        """Set how much each annotator counts for the consensus; constant within an epoch.

        Args:
            rho: ``R``, at least 0, not all 0; scaled to sum 1.
            shared: probability, before anything is seen, that what all share explains a voxel. Default: ``1/(1+R)``.

        Raises:
            ValueError: When rho does not fit, or ``shared`` is no probability.
        """
        rho = rho.to(self.rho)
        if rho.shape != self.rho.shape or bool((rho < 0).any()) or not bool(rho.sum() > 0):
            raise ValueError(f"rho must be {len(self.rho)} numbers of at least 0, not all 0, got {rho.tolist()}")
        shared = 1 / (1 + len(rho)) if shared is None else shared
        if not 0 <= shared < 1:
            raise ValueError(f"shared must be in [0, 1), got {shared}")
        self.rho.copy_(rho / rho.sum())
        self.prior_weight.copy_(torch.cat([rho.new_tensor([shared]), (1 - shared) * self.rho]))

    def add_annotator(self, name: str) -> list[nn.Parameter]:
        """Add an annotator at the end and freeze everything else.

        The new one has ``rho`` 0: what the others and the consensus give stays the same. The prior of the assignment
        is that of an average annotator.

        Returns:
            the parameters to fit: ``C M E + 1``, with kernels of 3x3x3 voxels ``28 C M E + 1``.

        Raises:
            ValueError: When the id is there already.
        """
        if name in self.annotators:
            raise ValueError(f"annotator '{name}' is there already: {list(self.annotators)}")
        device = self.rho.device
        ids = _as_bytes((*self.annotators, name)).to(device)
        self.requires_grad_(False)
        self.freeze_backbone = True
        self.train(self.training)
        added = self._new_kernels().to(self.log_scale)
        self.tendencies.append(added)
        self.annotators, self.annotator_ids = (*self.annotators, name), ids
        self.tendency_bank.extend(self.num_classes)
        self.rho = torch.cat([self.rho, torch.zeros(1, device=device)])
        prior = torch.cat([self.prior_weight, self.prior_weight[1:].mean().reshape(1)])
        self.prior_weight = prior / prior.sum()
        self.temperatures = torch.cat([self.temperatures, torch.ones(1, device=device)])
        return list(added.parameters())


def _as_bytes(ids: Sequence[str]) -> Tensor:
    """Ids as a table of bytes, padded with zeros."""
    encoded = [name.encode() for name in ids]
    if max(map(len, encoded)) > _BYTES:
        raise ValueError(f"annotators must have ids of at most {_BYTES} bytes, got {max(encoded, key=len).decode()}")
    return torch.tensor([list(name.ljust(_BYTES, b"\0")) for name in encoded], dtype=torch.uint8)
