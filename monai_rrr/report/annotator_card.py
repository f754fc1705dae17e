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

"""What an annotator tends to do compared with the consensus, measured on masks of several cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_rrr.metrics.lesion_recall import SIZES_MM3, found_lesions
from monai_rrr.metrics.tendency import Tendency, estimate_tendency, surface_shift
from monai_rrr.utils.class_map import CLASSES

__all__ = ["AnnotatorCard", "annotator_cards", "surface_roughness"]

SMOOTHING_MM = 2.0


@dataclass(frozen=True)
class AnnotatorCard:
    """Habits of one annotator relative to the consensus; NaN where there is nothing to measure.

    Args:
        annotator: id, a pseudonym.
        cases: that were compared.
        left_out: cases that this annotator drew in part only, or where the consensus is not known.
        rho: how much the annotator counts for the consensus; NaN when not given.
        volumes_ml: volume of the whole tumor of the annotator and of the consensus in each case.
        tendency: offset, its standard deviation from case to case, sigma along the contour, confusion of classes and
            the volume below which lesions are left out, see :class:`~monai_rrr.metrics.Tendency`.
        roughness_mm: mean over cases of :func:`surface_roughness`.
        consensus_roughness_mm: that of the consensus in the same cases.
        lesions: volume in mm3 of each lesion of the consensus, and whether the annotator has it.
    """

    annotator: str
    cases: int
    left_out: int
    rho: float
    volumes_ml: tuple[tuple[float, float], ...]
    tendency: Tendency | None
    roughness_mm: float
    consensus_roughness_mm: float
    lesions: tuple[tuple[float, bool], ...]

    @property
    def volume_bias_ml(self) -> float:
        """Mean over cases of the volume of the annotator minus that of the consensus."""
        return float(np.mean([own - shared for own, shared in self.volumes_ml])) if self.volumes_ml else float("nan")

    @property
    def volume_bias(self) -> float:
        """The same relative to the volume of the consensus: mean over the cases in which that has a tumor."""
        found = [own / shared - 1 for own, shared in self.volumes_ml if shared > 0]
        return float(np.mean(found)) if found else float("nan")

    def recall(self, sizes_mm3: Sequence[float] = SIZES_MM3) -> list[dict[str, float | int | None]]:
        """Lesions found, lesions and their ratio by size class; the last class has no upper limit."""
        limits = (0.0, *sizes_mm3)
        places = np.searchsorted(sizes_mm3, [size for size, _ in self.lesions], side="right")
        rows: list[dict[str, float | int | None]] = []
        for index, low in enumerate(limits):
            hits = [hit for place, (_, hit) in zip(places, self.lesions, strict=True) if place == index]
            high = sizes_mm3[index] if index < len(sizes_mm3) else None
            recall = sum(hits) / len(hits) if hits else None
            rows.append({"from_mm3": low, "to_mm3": high, "found": sum(hits), "lesions": len(hits), "recall": recall})
        return rows

    def sentences(self) -> list[str]:
        """What the annotator tends to do, in words that blame nobody."""
        if self.tendency is None:
            return ["There is no case to compare."]
        found, name = [], self.annotator
        offset, apart = self.tendency.offset_mm, self.tendency.offset_sd_mm / np.sqrt(max(self.cases, 1))
        if abs(offset) >= 0.5 and not abs(offset) < 2 * apart:
            word = "larger" if offset > 0 else "smaller"
            side = "outside" if offset > 0 else "inside"
            found.append(f"{name} tends to draw {word}: contours lie {abs(offset):.1f} mm {side} of the consensus.")
        ratio = self.roughness_mm / self.consensus_roughness_mm if self.consensus_roughness_mm > 0 else float("nan")
        if ratio < 0.8 or ratio > 1.25:
            found.append(f"{name} tends to draw {'smoother' if ratio < 1 else 'more detailed'} contours.")
        for (row, column), share in np.ndenumerate(self.tendency.confusion[1:, 1:]):
            if row != column and share >= 0.1:
                own, shared = CLASSES[column + 1], CLASSES[row + 1]
                found.append(f"{name} tends to draw {own} in {100 * share:.0f} % of the {shared} of the consensus.")
        missed = sum(not hit for _, hit in self.lesions)
        if self.tendency.miss_mm3 > 0 and missed:
            limit = self.tendency.miss_mm3
            found.append(
                f"{name} tends to leave out lesions below {limit:.0f} mm3: {missed} of {len(self.lesions)} lesions are "
                "not drawn."
            )
        return found or [f"{name} draws much like the consensus."]

    def record(self) -> dict[str, Any]:
        """Plain JSON values; what could not be measured is null."""
        measured = self.tendency
        return {
            "annotator": self.annotator,
            "cases": self.cases,
            "left_out": self.left_out,
            "rho": _number(self.rho),
            "volume_bias_ml": _number(self.volume_bias_ml),
            "volume_bias": _number(self.volume_bias),
            "offset_mm": None if measured is None else _number(measured.offset_mm),
            "offset_sd_mm": None if measured is None else _number(measured.offset_sd_mm),
            "sigma_mm": None if measured is None else _number(measured.sigma_mm),
            "roughness_mm": _number(self.roughness_mm),
            "consensus_roughness_mm": _number(self.consensus_roughness_mm),
            "confusion": None if measured is None else [[_number(x) for x in row] for row in measured.confusion],
            "classes": list(CLASSES),
            "miss_mm3": None if measured is None else _number(measured.miss_mm3),
            "lesion_recall": self.recall(),
            "sentences": self.sentences(),
        }


def annotator_cards(
    cases: Iterable[Mapping[str, Any]], annotators: Sequence[str], rho: Sequence[float] | None = None
) -> list[AnnotatorCard]:
    """Compare the masks of all annotators with the consensus, one case after the other.

    The consensus is not the truth: what most annotators share can't be seen, and the habits are relative to it. The
    same function reads the habits off predictions: give those of the network as annotations.

    Args:
        cases: ``annotations`` ``RXYZ`` (classes 0 background, 1 NCR, 2 ED, 3 ET; -1 where not known), ``consensus``
            ``XYZ`` of the same classes, ``spacing`` in mm; arrays or tensors on the CPU.
        annotators: ids, in the order of ``R``.
        rho: how much each counts for the consensus.

    Raises:
        ValueError: When shapes don't match, or there is not one ``rho`` for each.
    """
    names = tuple(annotators)
    if rho is not None and len(rho) != len(names):
        raise ValueError(f"expected one rho for each of {list(names)}, got {list(rho)}")
    parts: list[list[_Compared]] = [[] for _ in names]
    left_out = [0] * len(names)
    for number, case in enumerate(cases):
        drawn, consensus = np.asarray(case["annotations"]), np.asarray(case["consensus"])
        spacing = tuple(float(s) for s in case["spacing"])
        if drawn.shape != (len(names), *consensus.shape) or len(spacing) != consensus.ndim:
            raise ValueError(
                f"case {case.get('case_id', number)}: expected annotations of {len(names)} annotators on the grid of "
                f"the consensus {consensus.shape}, got {drawn.shape} and spacing {spacing}"
            )
        for r, mask in enumerate(drawn):
            if (mask >= 0).all() and (consensus >= 0).all():
                parts[r].append(_Compared.of(mask, consensus, spacing))
            elif (mask >= 0).any():
                left_out[r] += 1
    shares = [float("nan")] * len(names) if rho is None else [float(value) for value in rho]
    return [_card(*found) for found in zip(names, parts, left_out, shares, strict=True)]


def surface_roughness(mask: NDArray[np.bool_], spacing: Sequence[float], smoothing_mm: float = SMOOTHING_MM) -> float:
    """How far the surface of a mask departs from its own smoothed surface: root mean square in mm.

    Smooth contours have a small value, ragged or finely detailed ones a large value. Components that vanish when they
    are smoothed don't count; without any other there is no value (NaN). The grid alone makes some of it: compare masks
    of the same grid.

    Args:
        mask: ``XYZ``, True inside.
        spacing: voxel size in mm.
        smoothing_mm: standard deviation of the Gaussian.

    Example:
        >>> mask = np.zeros((20, 20, 20), bool)
        >>> mask[:, :, :10] = True
        >>> surface_roughness(mask, (1.0, 1.0, 1.0))
        0.0
    """
    sigma = [smoothing_mm / size for size in spacing]
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="nearest") > 0.5
    parts, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    kept = np.isin(parts, np.unique(parts[smooth & mask]))
    shift = surface_shift(mask & kept, smooth, spacing)
    return float(np.sqrt(np.mean(shift**2))) if shift.size else float("nan")


@dataclass(frozen=True)
class _Compared:
    """One mask beside the consensus."""

    mask: NDArray[Any]
    consensus: NDArray[Any]
    spacing: tuple[float, ...]
    volumes_ml: tuple[float, float]
    roughness: tuple[float, float]
    lesions: tuple[tuple[float, bool], ...]

    @classmethod
    def of(cls, mask: NDArray[Any], consensus: NDArray[Any], spacing: tuple[float, ...]) -> _Compared:
        """Measure; keeps only the box around both."""
        voxel = float(np.prod(spacing)) / 1000
        both = (mask > 0) | (consensus > 0)
        if both.any():
            cuts = ndimage.find_objects(both.astype(np.uint8))[0]
            reach = [int(np.ceil(4 * SMOOTHING_MM / size)) for size in spacing]
            box = tuple(slice(max(cut.start - n, 0), cut.stop + n) for cut, n in zip(cuts, reach, strict=True))
            mask, consensus = mask[box].astype(np.int8), consensus[box].astype(np.int8)
        own, shared = mask > 0, consensus > 0
        return cls(
            mask=mask,
            consensus=consensus,
            spacing=spacing,
            volumes_ml=(float(own.sum()) * voxel, float(shared.sum()) * voxel),
            roughness=(surface_roughness(own, spacing), surface_roughness(shared, spacing)),
            lesions=tuple(found_lesions(own, shared, spacing)),
        )


def _card(name: str, found: list[_Compared], left_out: int, rho: float) -> AnnotatorCard:
    tendency = None
    if found:
        masks, shared, spacings = zip(*((one.mask, one.consensus, one.spacing) for one in found), strict=True)
        tendency = estimate_tendency(masks, shared, spacings)
    rough = np.array([one.roughness for one in found if np.isfinite(one.roughness).all()]).reshape(-1, 2)
    own, consensus = rough.mean(0) if len(rough) else (float("nan"), float("nan"))
    return AnnotatorCard(
        annotator=name,
        cases=len(found),
        left_out=left_out,
        rho=rho,
        volumes_ml=tuple(one.volumes_ml for one in found),
        tendency=tendency,
        roughness_mm=float(own),
        consensus_roughness_mm=float(consensus),
        lesions=tuple(lesion for one in found for lesion in one.lesions),
    )


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
