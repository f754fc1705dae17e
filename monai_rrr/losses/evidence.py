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

"""A heatmap against a mask of where evidence is allowed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.utils import LossReduction
from torch import Tensor
from torch.nn.modules.loss import _Loss

from monai_rrr.losses.reduction import broadcast_to_heatmap, full_precision, reduced

__all__ = ["EvidenceLoss"]


class EvidenceLoss(_Loss):
    r"""How far a heatmap disagrees with the evidence mask.

    With :math:`h^+ = \max(h, 0)`, :math:`u = h^+ / \max h^+`, the mask :math:`m` and sums over the voxels that count:

    - ``"energy"``: :math:`1 - \sum h^+ m / \sum h^+`, in [0, 1]: the share of positive evidence outside; where
      :math:`\sum h^+` is below ``floor``, :math:`1 - \sum h^+ m`, which pulls evidence into the mask;
    - ``"outside_square"``: :math:`\sum (1 - m) (h / \max |h|)^2`, at least 0: evidence of either sign outside;
    - ``"l1"``: mean :math:`|u - m|`, and ``"l2"``: mean :math:`(u - m)^2`, in [0, 1]: ask for the whole mask;
    - ``"dice"``: :math:`1 - 2 \sum u m / (\sum u + \sum m)`, in [0, 1]: asks for the whole mask;
    - ``"outside_softplus"``: mean of :math:`\log(1 + e^h)` where :math:`m = 0`: cross-entropy against no evidence. At
      least at minus infinity, log 2 for a map of zeros: it rewards evidence *against* the class outside;
    - ``"outside_norm"``: :math:`\sqrt{\sum (1 - m) h^2}`, at least 0.

    Maxima are detached. All but the last two do not depend on the scale of the map.

    Args:
        kind: see above.
        floor: of sums and maxima in denominators.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over batch and classes.

    Shape:
        - input: heatmap ``BTH[WD]``, or ``BTMH[WD]`` with a modality axis; larger is more evidence.
        - target: evidence mask in [0, 1], **1 where evidence is allowed**; as the heatmap, axes may be 1.
        - mask: 1 or ``True`` for voxels that count; as the heatmap, axes may be 1. Default: everywhere.
        - output: scalar, or ``BT`` when ``reduction="none"``.

    Raises:
        ValueError: When ``kind`` is unknown, ``floor`` is not positive, or the shapes do not fit.

    Note:
        All kinds are finite for maps of zeros, empty and full masks. An empty mask makes energy and Dice 1: a class
        without a mask should be left out by who calls, except in the kinds that :attr:`takes_empty_masks` names.

    Reference:
        ``energy``, ``l1`` and ``outside_square``: S. Rao et al., Studying how to efficiently and effectively guide
        models with explanations, ICCV 2023 (the last one after A. Ross et al., IJCAI 2017, on any map);
        ``outside_softplus`` and ``outside_norm``: R. Draelos and L. Carin, arXiv 2011.08891; ``l2``: K. Li et al.,
        CVPR 2018, Eq. 7, on the scaled map. Differs from them in: maxima carry no gradient; only voxels in ``mask``.

    Example:
        >>> heatmap, allowed = torch.tensor([[[3.0, 1.0, -5.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])
        >>> EvidenceLoss("energy")(heatmap, allowed), EvidenceLoss("l1")(heatmap, allowed)
        (tensor(0.2500), tensor(0.1111))
    """

    kinds = ("energy", "outside_square", "l1", "l2", "dice", "outside_softplus", "outside_norm")
    takes_empty_masks = ("outside_square", "outside_softplus", "outside_norm")

    def __init__(
        self, kind: str = "energy", floor: float = 1e-7, reduction: LossReduction | str = LossReduction.MEAN
    ) -> None:
        super().__init__(reduction=LossReduction(reduction).value)
        if kind not in self.kinds:
            raise ValueError(f"kind must be one of {self.kinds}, got {kind!r}")
        if floor <= 0:
            raise ValueError(f"floor must be positive, got {floor}")
        self.kind, self.floor = kind, floor

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the disagreement."""
        allowed = broadcast_to_heatmap(target, input, "evidence mask").flatten(2)
        counts = torch.ones_like(allowed) if mask is None else broadcast_to_heatmap(mask, input, "mask").flatten(2)
        heatmap = full_precision(input).flatten(2)
        if self.kind.startswith("outside"):
            return reduced(self._outside(heatmap, counts * (1 - allowed), counts), self.reduction)
        positive, allowed = heatmap.clamp(min=0) * counts, allowed * counts
        if self.kind == "energy":
            total, inside = positive.sum(2), (positive * allowed).sum(2)
            value = 1 - torch.where(total < self.floor, inside, inside / total.clamp(min=self.floor))
            return reduced(value, self.reduction)
        scaled = positive / positive.detach().amax(2, keepdim=True).clamp(min=self.floor)
        if self.kind == "dice":
            value = 1 - 2 * (scaled * allowed).sum(2) / (scaled.sum(2) + allowed.sum(2)).clamp(min=self.floor)
        else:
            difference = scaled - allowed
            distance = difference.abs() if self.kind == "l1" else difference.square()
            value = (distance * counts).sum(2) / counts.sum(2).clamp(min=1)
        return reduced(value, self.reduction)

    def _outside(self, heatmap: Tensor, outside: Tensor, counts: Tensor) -> Tensor:
        if self.kind == "outside_softplus":
            return (F.softplus(heatmap) * outside).sum(2) / outside.sum(2).clamp(min=1)
        if self.kind == "outside_norm":
            norm: Tensor = torch.linalg.vector_norm(heatmap * outside.sqrt(), dim=2)
            return norm
        largest = (heatmap.detach() * counts).abs().amax(2, keepdim=True).clamp(min=self.floor)
        return ((heatmap / largest).square() * outside).sum(2)
