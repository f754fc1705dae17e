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

"""Gaussian random fields in millimeters: how the hand of an annotator shakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["MixedNormals", "NormalSource", "gaussian_field"]

KNOTS = 32
_KERNEL = np.sqrt(2.0)  # standard deviation of the kernel, in knots: a field of correlation length 2 knots


class NormalSource(Protocol):
    """Where normal numbers come from: a ``RandomState`` of NumPy, whose numbers never change, or a ``Generator``."""

    def standard_normal(self, size: Any = None) -> Any:
        """Draw numbers of mean 0 and variance 1."""
        ...


class MixedNormals:
    r"""Normal numbers that correlate with those of somebody else.

    .. math:: \sqrt{\rho}\, \varepsilon_\text{other} + \sqrt{1 - \rho}\, \varepsilon_\text{own}

    Args:
        own: numbers of this annotator alone.
        other: the same numbers that the other annotator draws.
        share: share of the variance that comes from the other, in [0, 1]; 1 copies.

    Raises:
        ValueError: When the share is out of range.
    """

    def __init__(self, own: NormalSource, other: NormalSource, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must be in [0, 1], got {share}")
        self.own, self.other, self.share = own, other, share

    def standard_normal(self, size: Any = None) -> Any:
        """Draw numbers of mean 0 and variance 1."""
        own, other = self.own.standard_normal(size), self.other.standard_normal(size)
        return np.sqrt(self.share) * other + np.sqrt(1 - self.share) * own


def gaussian_field(
    generator: NormalSource,
    shape: Sequence[int],
    spacing: Sequence[float],
    correlation_mm: float,
    start: Sequence[int] = (0, 0, 0),
) -> NDArray[np.float32]:
    r"""Random field of mean 0, standard deviation 1 and correlation :math:`e^{-d^2 / 2 \ell^2}` at the distance d.

    White noise on a lattice of half the correlation length, smoothed with a Gaussian. The lattice lies in physical
    space, counted from the corner of the image, and has the same number of values for every image: equal states of the
    generator give the same field on a coarse and on a fine grid, and in a part of the image. It repeats after 16
    correlation lengths (128 mm for 8 mm).

    Args:
        generator: source of the white noise; 32 x 32 x 32 numbers are drawn.
        shape: voxels to evaluate, ``X Y Z``.
        spacing: voxel size in mm.
        correlation_mm: correlation length in mm.
        start: index in the image of the first voxel.

    Returns:
        Field, ``X Y Z``.

    Raises:
        ValueError: When the correlation length is not positive.

    Example:
        >>> fine = gaussian_field(np.random.RandomState(0), (8, 8, 8), (1, 1, 1), 8.0)
        >>> part = gaussian_field(np.random.RandomState(0), (4, 4, 4), (1, 1, 1), 8.0, start=(2, 2, 2))
        >>> np.allclose(fine[2:6, 2:6, 2:6], part, atol=1e-5)
        True
    """
    if not correlation_mm > 0:
        raise ValueError(f"correlation_mm must be positive, got {correlation_mm}")
    field = np.asarray(generator.standard_normal((KNOTS, KNOTS, KNOTS)))
    for count, size, first in zip(shape, spacing, start, strict=True):
        # each pass turns the first axis of the lattice into the last axis of the field
        field = np.tensordot(field, _weights(count, size, first, correlation_mm / 2), axes=(0, 1))
    return field.astype(np.float32)


def _weights(count: int, size: float, first: int, knot_mm: float) -> NDArray[np.float64]:
    """Kernel values ``count x KNOTS`` along one axis, of squared sum 1 in every row."""
    position = (first + np.arange(count) + 0.5) * size / knot_mm
    distance = (position[:, None] - np.arange(KNOTS) + KNOTS / 2) % KNOTS - KNOTS / 2
    kernel = np.exp(-0.5 * (distance / _KERNEL) ** 2)
    return np.asarray(kernel / np.sqrt((kernel**2).sum(1, keepdims=True)))
