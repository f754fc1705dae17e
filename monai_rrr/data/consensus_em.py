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

"""Consensus of several annotators by expectation maximization, with confusion matrices that depend on the border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_rrr.utils.distance import signed_distance

__all__ = ["BANDS_MM", "Consensus", "consensus_em", "consensus_staple"]

BANDS_MM: tuple[float, ...] = (-4.0, -1.0, 1.0, 4.0)
"""Limits of the five bands of signed distance to the border of the tumor, in mm."""
ROI_MM = 8.0
_DIAGONAL, _OTHER = 5.0, 1.0
_LEAST = 1e-12

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Consensus:
    """What the annotators are taken to mean, and how much each counts.

    Args:
        probabilities: for each case ``CXYZ`` float64, sums to 1; background outside of the region around the masks.
        confusion: ``R (bands) C C``: row true class, column drawn class, rows sum to 1.
        reliability: ``R``, share of an annotator's voxels that lie on the diagonals of the confusion matrices,
            normalized to the sum 1; 0 for who drew nothing.
        iterations: number of iterations.
    """

    probabilities: list[Float]
    confusion: Float
    reliability: Float
    iterations: int

    @property
    def classes(self) -> list[NDArray[np.int64]]:
        """Most probable class of each case, ``XYZ``; of equal ones the lowest."""
        return [np.asarray(one.argmax(0), np.int64) for one in self.probabilities]


@dataclass(frozen=True)
class _Case:
    """Voxels of one case that are near to what anybody drew, in one row.

    Args:
        shape: of the case.
        box: around these voxels.
        inside: these voxels, as a mask of the box.
        drawn: ``R N``.
        spacing: voxel size in mm.
        prior: ``C N``, if there is one.
    """

    shape: tuple[int, ...]
    box: tuple[slice, ...]
    inside: NDArray[np.bool_]
    drawn: NDArray[np.intp]
    spacing: Sequence[float]
    prior: Float | None

    def whole(self, belief: Float) -> Float:
        """Put probabilities back to their voxels."""
        full = np.zeros((len(belief), *self.shape))
        full[0] = 1.0
        crop = (slice(None), *self.box)
        full[crop][:, self.inside] = belief
        return full


def consensus_em(
    annotations: Sequence[NDArray[np.integer]],
    spacings: Sequence[Sequence[float]],
    priors: Sequence[Float] | None = None,
    num_classes: int = 4,
    bands_mm: Sequence[float] = (),
    smoothing: tuple[float, float] = (_DIAGONAL, _OTHER),
    max_iterations: int = 50,
    tolerance: float = 1e-6,
) -> Consensus:
    r"""Estimate the truth behind several masks together with what each annotator takes for what, band by band.

    .. math:: T_v(c) \propto p_0(c \mid v) \prod_{r \in O_v} A_r^{b(v)}[c, y_r(v)]

    starting at the mean of the masks; confusion matrices are shared by all cases. With bands there is one matrix for
    each band of signed distance to the border of the tumor in the first majority, since habits of contours show near
    it only; :data:`BANDS_MM` are those for gliomas. Bands know the border of the whole tumor alone: they help WT, and
    can harm TC and ET in small tumors. Where the majority of annotators share a habit, nothing here recovers the truth:
    what they agree on is taken for it.

    Args:
        annotations: classes of each case; -1 where an annotator says nothing (absent, or a region left out).
        spacings: voxel size in mm of each case.
        priors: :math:`p_0` of each case, such as the softmax of a network. None: the shares of the classes in the band.
        num_classes: number of classes ``C``, background is 0.
        bands_mm: limits of the bands in mm, negative outside; empty gives one matrix for everything (Dawid and Skene).
        smoothing: pseudo-counts of the diagonal and of all else.
        max_iterations: at most so many.
        tolerance: stop when no probability changes by more.

    Shape:
        - annotations: ``RXYZ`` each; priors: ``CXYZ`` each

    Raises:
        ValueError: When shapes or lists don't match, a class is out of range, or the bands don't ascend.

    Reference:
        A. Dawid and A. Skene, Maximum likelihood estimation of observer error-rates using the EM algorithm, 1979;
        S. Warfield et al., STAPLE, IEEE TMI 2004. Bands, pseudo-counts and the region of interest are ours. Counts are
        float64: those of SimpleITK's multi-label STAPLE are float32 and stop growing at 16.8 million voxels.

    Example:
        >>> masks = np.zeros((3, 8, 8, 8), np.int8)
        >>> masks[:2, 2:6, 2:6, 2:6] = 1
        >>> bool((consensus_em([masks], [(1, 1, 1)], num_classes=2).classes[0] == masks[0]).all())
        True
    """
    if not len(annotations) or not len(annotations) == len(spacings) == len(annotations if priors is None else priors):
        raise ValueError(f"expected a spacing and a prior, if any, for each of at least one case, got {len(spacings)}")
    cases = []
    for number, (masks, spacing) in enumerate(zip(annotations, spacings, strict=True)):
        cases.append(_case(masks, spacing, None if priors is None else priors[number], num_classes, bands_mm))
    if len({len(case.drawn) for case in cases}) > 1:
        raise ValueError("expected the same annotators in all cases, absent ones as -1")
    start = np.full((num_classes, num_classes), smoothing[1]) + np.eye(num_classes) * (smoothing[0] - smoothing[1])
    beliefs = [_mean_of_masks(case.drawn, num_classes) for case in cases]
    bands = [_band(case, belief, bands_mm) for case, belief in zip(cases, beliefs, strict=True)]
    iterations = 0
    while True:
        iterations += 1
        confusion, counts = _confusion(cases, beliefs, bands, len(bands_mm) + 1, start)
        share = _shares(beliefs, bands, len(bands_mm) + 1)
        new = [
            _expectation(case.drawn, share[:, band] if case.prior is None else case.prior, confusion, band)
            for case, band in zip(cases, bands, strict=True)
        ]
        change = max(float(np.abs(a - b).max(initial=0.0)) for a, b in zip(new, beliefs, strict=True))
        beliefs = new
        if change <= tolerance or iterations >= max_iterations:
            break
    mass = np.einsum("rbcc,rbc->r", confusion, counts) / np.maximum(counts.sum((1, 2)), _LEAST)
    whole = [case.whole(belief) for case, belief in zip(cases, beliefs, strict=True)]
    return Consensus(whole, confusion, mass / mass.sum() if mass.sum() else mass, iterations)


def consensus_staple(annotations: NDArray[np.integer], num_classes: int = 4) -> NDArray[np.int64]:
    """Consensus by SimpleITK's multi-label STAPLE, for comparison. Ties are background.

    Args:
        annotations: classes of annotators who all drew the whole case.
        num_classes: number of classes, at most 255.

    Shape:
        - annotations: ``RXYZ``; output: ``XYZ`` int64

    Raises:
        ValueError: When a class isn't known (-1), which this algorithm has no notion of; or as :func:`consensus_em`.
    """
    _check(annotations, None, num_classes, ())
    if (annotations < 0).any():
        raise ValueError("expected annotators who drew everything, got voxels of class -1; use consensus_em")
    full = np.zeros(annotations.shape[1:], np.int64)
    roi = _around(np.asarray((annotations > 0).any(0)), (1.0, 1.0, 1.0), 2.0)
    if roi is None:
        return full
    box, _ = roi
    images = [sitk.GetImageFromArray(np.ascontiguousarray(one[box]).astype(np.uint8)) for one in annotations]
    staple: Any = sitk.MultiLabelSTAPLEImageFilter()  # type: ignore[no-untyped-call]
    staple.SetLabelForUndecidedPixels(num_classes)
    found = sitk.GetArrayFromImage(staple.Execute(images)).astype(np.int64)
    full[box] = np.where(found == num_classes, 0, found)
    return full


def _check(annotations: NDArray[np.integer], prior: Float | None, num_classes: int, bands_mm: Sequence[float]) -> None:
    if annotations.ndim != 4 or not len(annotations):
        raise ValueError(f"expected annotations R X Y Z, got {annotations.shape}")
    if annotations.min() < -1 or annotations.max() >= num_classes:
        got = f"{annotations.min()} to {annotations.max()}"
        raise ValueError(f"expected classes from -1 to {num_classes - 1}, got {got}")
    if prior is not None and prior.shape != (num_classes, *annotations.shape[1:]):
        raise ValueError(f"prior {prior.shape} does not match annotations {annotations.shape}")
    if list(bands_mm) != sorted(set(bands_mm)):
        raise ValueError(f"expected ascending limits of bands in mm, got {list(bands_mm)}")


def _around(
    union: NDArray[np.bool_], spacing: Sequence[float], room_mm: float = ROI_MM
) -> tuple[tuple[slice, ...], NDArray[np.bool_]] | None:
    """Return the box around what anybody drew, and the voxels in it that are near, as a mask of the box."""
    if not union.any():
        return None
    box = []
    for axis, size in enumerate(spacing):
        places = np.flatnonzero(union.any(tuple({0, 1, 2} - {axis})))
        room = int(np.ceil(room_mm / size)) + 1
        box.append(slice(max(int(places[0]) - room, 0), min(int(places[-1]) + room + 1, union.shape[axis])))
    return tuple(box), signed_distance(union[tuple(box)], spacing) > -room_mm


def _case(
    masks: NDArray[np.integer],
    spacing: Sequence[float],
    prior: Float | None,
    num_classes: int,
    bands_mm: Sequence[float],
) -> _Case:
    _check(masks, prior, num_classes, bands_mm)
    roi = _around(np.asarray((masks > 0).any(0)), spacing)
    if roi is None:  # nobody drew anything: no voxel is near
        roi = tuple(slice(0, 1) for _ in spacing), np.zeros((1, 1, 1), bool)
    box, inside = roi
    crop = (slice(None), *box)
    drawn = masks[crop][:, inside].astype(np.intp)
    near = None if prior is None else prior[crop][:, inside]
    return _Case(masks.shape[1:], box, inside, drawn, spacing, near)


def _mean_of_masks(drawn: NDArray[np.intp], num_classes: int) -> Float:
    votes = np.stack([(drawn == index).sum(0) for index in range(num_classes)]).astype(np.float64)
    total = votes.sum(0)
    return np.asarray(np.where(total > 0, votes / np.maximum(total, 1), 1.0 / num_classes))


def _band(case: _Case, belief: Float, bands_mm: Sequence[float]) -> NDArray[np.intp]:
    """Band of every voxel, by its distance to the border of the tumor that most annotators drew."""
    if not len(bands_mm):
        return np.zeros(belief.shape[1], np.intp)
    tumor = np.zeros(case.inside.shape, bool)
    tumor[case.inside] = belief[0] < 0.5
    return np.asarray(np.searchsorted(bands_mm, signed_distance(tumor, case.spacing)[case.inside], side="right"))


def _shares(beliefs: Sequence[Float], bands: Sequence[NDArray[np.intp]], count: int) -> Float:
    """Share of every class in every band, ``C (bands)``."""
    band = np.concatenate(bands)
    sums = np.stack([np.bincount(band, row, count) for row in np.concatenate(beliefs, axis=1)])
    return np.asarray(sums / np.maximum(sums.sum(0), _LEAST))


def _confusion(
    cases: Sequence[_Case], beliefs: Sequence[Float], bands: Sequence[NDArray[np.intp]], count: int, start: Float
) -> tuple[Float, Float]:
    """Return smoothed confusion matrices ``R (bands) C C`` and the voxels of each true class, ``R (bands) C``."""
    classes, raters = len(start), len(cases[0].drawn)
    matrices = np.tile(start, (raters, count, 1, 1))
    counts = np.zeros((raters, count, classes))
    for case, belief, band in zip(cases, beliefs, bands, strict=True):
        for rater, said in enumerate(case.drawn):
            known = said >= 0
            cell = band[known] * classes + said[known]
            for true in range(classes):
                mass = np.bincount(cell, belief[true, known], count * classes).reshape(count, classes)
                matrices[rater, :, true] += mass
                counts[rater, :, true] += mass.sum(1)
    return matrices / np.maximum(matrices.sum(3, keepdims=True), _LEAST), counts


def _expectation(drawn: NDArray[np.intp], prior: Float, confusion: Float, band: NDArray[np.intp]) -> Float:
    total = np.broadcast_to(np.log(np.maximum(prior, _LEAST)), (len(prior), drawn.shape[1])).copy()
    for matrix, said in zip(np.log(np.maximum(confusion, _LEAST)), drawn, strict=True):
        known = said >= 0
        total[:, known] += matrix[band[known], :, said[known]].T
    total = np.exp(total - total.max(0))
    return np.asarray(total / total.sum(0))
