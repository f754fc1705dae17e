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

"""How well several predictions reproduce the disagreement of several annotators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from monai.metrics import compute_dice
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = [
    "D_SOFT_THRESHOLDS",
    "QUBIQ_THRESHOLDS",
    "agreement_matrix",
    "annotation_ncc",
    "generalized_energy_distance",
    "matched_dice",
    "threshold_dice",
]

QUBIQ_THRESHOLDS: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
D_SOFT_THRESHOLDS: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
_TIE = 1e-6
_EXACT = 2**24  # whole numbers below are exact in float32


def generalized_energy_distance(samples: Tensor, annotations: Tensor) -> Tensor:
    r"""Squared generalized energy distance between two sets of masks of one case, per region; 0 is best, 2 is worst.

    .. math:: 2\, \mathbb{E}\, d(s, y) - \mathbb{E}\, d(s, s') - \mathbb{E}\, d(y, y'), \quad d = 1 - \mathrm{IoU}

    Means run over all pairs, those of a mask with itself included (V-statistic): the annotators themselves then score
    0, and nothing scores less. Without these pairs the annotators would score below 0, and what is best would depend
    on their number. Two empty masks agree (d = 0).

    Args:
        samples: predicted masks, 0/1.
        annotations: masks of the annotators, 0/1.

    Shape:
        - samples: ``SKX[YZ]``; annotations: ``RKX[YZ]``
        - output: ``K`` float64

    Raises:
        ValueError: When shapes don't match, or a mask holds anything but 0 and 1.

    Reference:
        S. Kohl et al., A probabilistic U-Net for segmentation of ambiguous images, NeurIPS 2018. Published numbers
        differ in the pairs that they count and in empty masks: never compare across protocols.

    Example:
        >>> masks = torch.tensor([[[1, 1, 0, 0]], [[1, 0, 0, 0]]])
        >>> generalized_energy_distance(masks, masks).item(), generalized_energy_distance(masks[:1], masks).item()
        (0.0, 0.25)
    """
    s, y = _masks(samples, "samples"), _masks(annotations, "annotations")
    _match(s, y)
    between, first, second = (_iou_distance(a, b).mean((1, 2)) for a, b in ((s, y), (s, s), (y, y)))
    return 2 * between - first - second


def threshold_dice(prediction: Tensor, truth: Tensor, thresholds: Sequence[float] = QUBIQ_THRESHOLDS) -> Tensor:
    """Dice of two soft masks, averaged over thresholds: Q-Dice, and with :data:`D_SOFT_THRESHOLDS` D_soft.

    A voxel counts when more than the threshold say so: a share that equals a threshold isn't above it, whatever the
    rounding (1 of 5 is not above 0.2; that is the choice that papers leave open). Both empty: 1; one empty: 0. With 3
    annotators the nine thresholds are three levels, each counted three times: at least one, at least two, all.

    Args:
        prediction: mean of the predicted masks, or probabilities, in [0, 1].
        truth: mean of the annotators' masks.
        thresholds: in (0, 1).

    Shape:
        - prediction, truth: ``KX[YZ]``; output: ``K``

    Raises:
        ValueError: When shapes don't match, values leave [0, 1], or a threshold is out of range.

    Reference:
        QUBIQ challenge, MICCAI 2020 (Q-Dice); Y. Wu et al., Diversified and personalized multi-rater medical image
        segmentation, CVPR 2024 (D_soft).

    Example:
        >>> threshold_dice(torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 0.0]]), [0.25, 0.75])
        tensor([0.5000])
    """
    p, t = _plain(prediction).float(), _plain(truth).float()
    if p.shape != t.shape or p.ndim < 2:
        raise ValueError(f"prediction {tuple(p.shape)} does not match truth {tuple(t.shape)}, K X [Y Z]")
    if not thresholds or not all(0 < level < 1 for level in thresholds):
        raise ValueError(f"expected thresholds in (0, 1), got {list(thresholds)}")
    for name, values in (("prediction", p), ("truth", t)):
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"{name} expected values in [0, 1], got {float(values.min())} to {float(values.max())}")
    above = [torch.stack([values > level + _TIE for level in thresholds]) for values in (p, t)]
    found: Tensor = compute_dice(above[0].float(), above[1].float(), include_background=True, ignore_empty=False)
    return found.mean(0)


def matched_dice(samples: Tensor, annotations: Tensor) -> Tensor:
    """Mean Dice when every annotator gets another prediction, in the best way (D_match), per region.

    The best way is found per region. It says nothing about who is who: a prediction for annotator 1 may serve
    annotator 2. Both empty: 1; one empty: 0.

    Args:
        samples: predicted masks, 0/1, at least as many as annotators.
        annotations: masks of the annotators, 0/1.

    Shape:
        - samples: ``SKX[YZ]``; annotations: ``RKX[YZ]``
        - output: ``K`` float64

    Raises:
        ValueError: When shapes don't match, there are fewer predictions than annotators, or values are not 0 and 1.

    Example:
        >>> masks = torch.tensor([[[1, 1, 0]], [[1, 0, 0]]])
        >>> matched_dice(masks.flip(0), masks)
        tensor([1.], dtype=torch.float64)
    """
    s, y = _masks(samples, "samples"), _masks(annotations, "annotations")
    _match(s, y)
    if len(s) < len(y):
        raise ValueError(f"expected at least one prediction for each of {len(y)} annotators, got {len(s)}")
    best = []
    for table in _dice(s, y).cpu().numpy():
        rows, columns = linear_sum_assignment(table, maximize=True)
        best.append(float(table[rows, columns].mean()))
    return torch.tensor(best, dtype=torch.float64)


def annotation_ncc(probabilities: Tensor, annotations: Tensor) -> Tensor:
    r"""Correlation of predicted uncertainty with where annotators and predictions differ, in [-1, 1]; 1 is best.

    .. math:: \frac{1}{R} \sum_r \mathrm{NCC}\big( \mathbb{E}_s\, CE(\bar{s}, s),\; \mathbb{E}_s\, CE(y_r, s) \big)

    with the cross-entropy :math:`CE(t, s) = -\sum_c t_c \log(s_c + 10^{-8})` of every voxel and the mean prediction
    :math:`\bar{s}`. NaN when one of the maps is constant, such as for a prediction that is 0 and 1 everywhere.

    Args:
        probabilities: predictions that sum to 1 over classes.
        annotations: one-hot masks of the annotators.

    Shape:
        - probabilities: ``SCX[YZ]``; annotations: ``RCX[YZ]``; output: a scalar

    Raises:
        ValueError: When shapes don't match.

    Reference:
        C. Baumgartner et al., PHiSeg: capturing uncertainty in medical image segmentation, MICCAI 2019.
    """
    s, y = _plain(probabilities).double().flatten(2), _plain(annotations).double().flatten(2)
    _match(s, y)
    surprise = -(s + 1e-8).log().mean(0)
    expected = (s.mean(0) * surprise).sum(0)
    found = [_correlation(expected, (truth * surprise).sum(0)) for truth in y]
    return torch.stack(found).mean()


def agreement_matrix(masks: Tensor) -> Tensor:
    """Dice of every pair of annotators, per region: whether predictions disagree as the annotators do.

    The distance between two such matrices, each averaged over cases, is ``torch.linalg.matrix_norm(a - b)``.

    Args:
        masks: 0/1.

    Shape:
        - masks: ``RKX[YZ]``; output: ``KRR`` float64, 1 on the diagonal
    """
    values = _masks(masks, "masks")
    return _dice(values, values)


def _plain(values: Tensor) -> Tensor:
    return (values.as_tensor() if isinstance(values, MetaTensor) else values).detach()


def _masks(values: Tensor, name: str) -> Tensor:
    """Return masks as ``KSN`` of numbers whose sums are exact."""
    plain = _plain(values)
    if plain.ndim < 3:
        raise ValueError(f"{name} expected masks of shape S K X [Y Z], got {tuple(plain.shape)}")
    if not bool(((plain == 0) | (plain == 1)).all()):
        raise ValueError(f"{name} expected 0 or 1 everywhere, got values from {plain.min()} to {plain.max()}")
    flat = plain.flatten(2)
    return flat.double() if flat.shape[2] > _EXACT else flat.float()


def _match(first: Tensor, second: Tensor) -> None:
    if first.shape[1:] != second.shape[1:] or not len(first) or not len(second):
        raise ValueError(f"expected masks of one shape, got {tuple(first.shape)} and {tuple(second.shape)} (flattened)")


def _overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return intersections and sums of sizes of all pairs, ``KSR``."""
    both = torch.einsum("skn,rkn->ksr", first, second).double()
    return both, (first.sum(2).T[:, :, None] + second.sum(2).T[:, None, :]).double()


def _iou_distance(first: Tensor, second: Tensor) -> Tensor:
    both, sizes = _overlap(first, second)
    either = sizes - both
    return torch.where(either > 0, 1 - both / either.clamp(min=1), 0.0)


def _dice(first: Tensor, second: Tensor) -> Tensor:
    both, sizes = _overlap(first, second)
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    scale = a.norm() * b.norm()
    return torch.where(scale > 1e-12, (a * b).sum() / scale.clamp(min=1e-12), torch.nan)
