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

"""A sampled spatial transform as a value: drawn once, applied to images, heatmaps and masks of any resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_rrr.utils.seeds import step_generator

__all__ = ["RandomWarp", "Warp"]


@dataclass(frozen=True)
class Warp:
    """One spatial transform per sample of a batch.

    ``theta`` maps normalized output coordinates to normalized input coordinates, each axis running from -1 to 1 over
    the field of view (``align_corners=False``), in the order of the array axes. Because the coordinates are
    normalized, the same warp fits an image and its heatmap at a lower resolution. Samples marked ``exact`` are flips
    and quarter turns: they are carried out by index operations, without interpolation and without error. Samples that
    keep the slices of a volume are interpolated within the slices only, several times faster and equal up to rounding.

    Args:
        theta: ``B S (S+1)`` for ``S`` spatial axes; kept on the CPU, so that no decision waits for a GPU.
        exact: ``B`` booleans; an exact sample's ``theta`` is a signed permutation without translation.

    Raises:
        ValueError: When the shapes do not fit, or an exact sample is no signed permutation or a quarter turn of unequal
            axes.
        TypeError: When integers or booleans are to be interpolated.

    Example:
        >>> warp = Warp(torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]), (True,))
        >>> warp(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        tensor([[[[3., 4.],
                  [1., 2.]]]])
    """

    theta: Tensor
    exact: tuple[bool, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "theta", self.theta.cpu())
        if self.theta.ndim != 3 or self.theta.shape[2] != self.theta.shape[1] + 1 or self.theta.shape[1] not in (2, 3):
            raise ValueError(f"theta must be B x 2 x 3 or B x 3 x 4, got {tuple(self.theta.shape)}")
        if len(self.exact) != len(self.theta):
            raise ValueError(f"exact needs {len(self.theta)} flags, got {len(self.exact)}")
        for sample in (i for i, flag in enumerate(self.exact) if flag):
            _signed_permutation(self.theta[sample])

    def __call__(self, x: Tensor, mode: str = "bilinear") -> Tensor:
        """Warp ``x``, ``B ... H W [D]`` with any number of axes between batch and space; zeros come in at borders."""
        spatial = self.theta.shape[1]
        if x.ndim < spatial + 1 or len(x) != len(self.theta):
            raise ValueError(f"expected {len(self.theta)} samples with {spatial} spatial axes, got {tuple(x.shape)}")
        flat = x.reshape(len(x), -1, *x.shape[-spatial:])
        moved: list[Tensor | None] = [None] * len(x)
        for sample, is_exact in enumerate(self.exact):
            if is_exact:
                moved[sample] = _apply_exact(flat[sample], *_signed_permutation(self.theta[sample]))
        rest = [i for i, is_exact in enumerate(self.exact) if not is_exact]
        if rest and not x.is_floating_point():
            raise TypeError(f"a warp that interpolates needs floating point values, got {x.dtype}")
        # no shear along the last axis either: all slices are then resampled alike
        alike = (self._straight() & (self.theta[:, :-1, -2].abs().amax(1) == 0)).tolist()
        for resample, chosen in (
            (_resample_slices, [i for i in rest if spatial == 3 and alike[i]]),
            (_resample, [i for i in rest if spatial == 2 or not alike[i]]),
        ):
            if chosen:
                for i, row in zip(chosen, resample(flat[chosen], self.theta[chosen], mode), strict=True):
                    moved[i] = row
        return torch.stack([m for m in moved if m is not None]).reshape(x.shape)

    def inverse(self) -> Warp:
        """The transform that undoes this one (exactly for exact samples, inside the field of view for others)."""
        spatial = self.theta.shape[1]
        square = torch.cat([self.theta, self.theta.new_zeros(len(self.theta), 1, spatial + 1)], dim=1)
        square[:, -1, -1] = 1.0
        return Warp(torch.linalg.inv(square)[:, :spatial], self.exact)

    def validity(self, shape: Sequence[int], device: str | torch.device | None = None) -> Tensor:
        """Where the warped field of view holds data: boolean ``B 1 *shape``, on ``device`` (default: CPU)."""
        return self(torch.ones(len(self.theta), 1, *shape, device=device)) > 0.999

    def slices(self, values: Tensor) -> Tensor:
        """Carry per-slice values ``B ... D`` along: reversed where the last axis is flipped, NaN where slices mix."""
        shape = (-1, *(1,) * (values.ndim - 1))
        mirrored = (self.theta[:, -1, -2] < 0).view(shape).to(values.device)
        straight = self._straight().view(shape).to(values.device)
        return torch.where(straight, torch.where(mirrored, values.flip(-1), values), torch.full_like(values, torch.nan))

    def _straight(self) -> Tensor:
        """``B``: whether every slice along the last axis comes from one slice."""
        axis = self.theta[:, -1]
        return (axis[:, :-2].abs().amax(1) == 0) & (axis[:, -1] == 0) & (axis[:, -2].abs() == 1)


@dataclass(frozen=True)
class RandomWarp:
    """Draws one :class:`Warp` per sample.

    With probability ``exact`` a sample is moved by the exact group (flips of any axis; quarter turns in plane, where
    the plane is square), else by an in-plane similarity times left-right flip times flip of the last axis, and, when
    ``tilt`` or ``shift`` are not zero, a rotation out of the plane and a shift along the last axis, after which
    per-slice tags no longer hold (:meth:`Warp.slices` says NaN).

    The draw is a pure function of ``(seed, iteration, rank)``: a resumed run sees the same warps.

    Args:
        seed: random seed.
        rotation: largest in-plane angle, degrees.
        scale: range of the scale factor.
        translation: largest in-plane shift as a share of the field of view.
        exact: probability of an exact transform.
        tilt: largest rotation out of the plane, degrees (3D).
        shift: largest shift along the last axis as a share of the field of view (3D).

    Raises:
        ValueError: When a range or probability makes no sense.

    Example:
        >>> RandomWarp(seed=1)(torch.zeros(2, 4, 16, 16, 8), iteration=3).theta.shape
        torch.Size([2, 3, 4])
    """

    seed: int = 0
    rotation: float = 180.0
    scale: tuple[float, float] = (0.8, 1.2)
    translation: float = 0.1
    exact: float = 0.5
    tilt: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.exact <= 1:
            raise ValueError(f"exact must be a probability, got {self.exact}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be an increasing range above 0, got {self.scale}")
        if min(self.rotation, self.translation, self.tilt, self.shift) < 0:
            raise ValueError("rotation, translation, tilt and shift must not be negative")

    def __call__(self, image: Tensor, iteration: int = 0, rank: int = 0) -> Warp:
        """Draw warps for ``image`` (``B C H W [D]``, isotropic voxels); only its shape and device are used."""
        shape = tuple(image.shape[2:])
        if len(shape) not in (2, 3):
            raise ValueError(f"expected B C H W [D], got {tuple(image.shape)}")
        generator = step_generator(self.seed, iteration, rank)
        draws = [self._draw(shape, generator) for _ in range(len(image))]
        theta = torch.stack([theta for theta, _ in draws])
        return Warp(theta, tuple(exact for _, exact in draws))

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, bool]:
        spatial = len(shape)
        uniform = torch.rand(10, generator=generator, dtype=torch.float64).tolist()
        exact = uniform[0] < self.exact
        flips = torch.diag(torch.tensor([-1.0 if u < 0.5 else 1.0 for u in uniform[1 : spatial + 1]]).double())
        if exact:
            turns = int(uniform[4] * 4) if shape[0] == shape[1] else 0
            matrix = torch.linalg.matrix_power(_rotation(90.0, spatial).round(), turns) @ flips
            return torch.cat([matrix, torch.zeros(spatial, 1)], 1).float(), True
        matrix = _rotation(_symmetric(uniform[4], self.rotation), spatial)
        factor = self.scale[0] + uniform[5] * (self.scale[1] - self.scale[0])
        zoom = torch.eye(spatial).double()
        zoom[0, 0] = zoom[1, 1] = 1.0 / factor
        offset = torch.zeros(spatial, 1).double()
        offset[0], offset[1] = (
            _symmetric(uniform[6], 2 * self.translation),
            _symmetric(uniform[7], 2 * self.translation),
        )
        if spatial == 3:
            offset[2] = _symmetric(uniform[9], 2 * self.shift)
            matrix = matrix @ _tilt(_symmetric(uniform[8], self.tilt))
        # in-plane flips other than left-right are rotations of it; keep one reflection and the flip of the last axis
        keep = torch.eye(spatial).double()
        keep[0, 0] = flips[0, 0]
        if spatial == 3:
            keep[2, 2] = flips[2, 2]
        # a rotation is one only in voxel (mm) units: theta = inv(N) A N with N = half the extents
        extent = torch.diag(torch.tensor(shape).double() / 2)
        linear = torch.linalg.inv(extent) @ (matrix @ zoom @ keep) @ extent
        return torch.cat([linear, offset], 1).float(), False


def _symmetric(uniform: float, limit: float) -> float:
    return (2 * uniform - 1) * limit


def _rotation(degrees: float, spatial: int) -> Tensor:
    matrix = torch.eye(spatial).double()
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]]).double()
    return matrix


def _tilt(degrees: float) -> Tensor:
    matrix = torch.eye(3).double()
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[1:, 1:] = torch.tensor([[cos, -sin], [sin, cos]]).double()
    return matrix


def _signed_permutation(theta: Tensor) -> tuple[list[int], list[bool]]:
    """Input axis and flip of each output axis."""
    matrix, offset = theta[:, :-1], theta[:, -1]
    size = matrix.abs()
    one = torch.ones(len(matrix))
    if offset.abs().max() > 0 or not (torch.equal(size.amax(0), one) and torch.equal(size.sum(0), one)):
        raise ValueError(f"an exact warp must be a signed permutation without translation, got {theta.tolist()}")
    source = size.argmax(0).tolist()
    return source, [bool(matrix[i, j] < 0) for j, i in enumerate(source)]


def _apply_exact(x: Tensor, source: list[int], flips: list[bool]) -> Tensor:
    moved = x.permute(0, *(1 + axis for axis in source))
    moved = moved.flip([1 + axis for axis, flip in enumerate(flips) if flip])
    if moved.shape != x.shape:
        raise ValueError(f"a quarter turn needs equal axes, got {tuple(x.shape[1:])}")
    return moved


def _resample(x: Tensor, theta: Tensor, mode: str) -> Tensor:
    # grid_sample counts axes from the last to the first
    reverse = theta.flip(1)
    reverse = torch.cat([reverse[..., :-1].flip(2), reverse[..., -1:]], dim=2)
    # coordinates in half precision would be off by voxels
    precise = x if x.dtype == torch.float64 else x.float()
    grid = F.affine_grid(reverse.to(precise), list(x.shape), align_corners=False)
    return F.grid_sample(precise, grid, mode=mode, padding_mode="zeros", align_corners=False).to(x.dtype)


def _resample_slices(x: Tensor, theta: Tensor, mode: str) -> Tensor:
    """:func:`_resample` for samples whose slices stay slices: the slices of all channels share one plane's grid."""
    flipped = torch.stack([row.flip(-1) if matrix[2, 2] < 0 else row for row, matrix in zip(x, theta, strict=True)])
    planes = flipped.movedim(-1, 2).flatten(1, 2)
    moved = _resample(planes, theta[:, :2, [0, 1, 3]], mode)
    volumes: Tensor = moved.unflatten(1, (x.shape[1], x.shape[-1])).movedim(2, -1)
    return volumes
