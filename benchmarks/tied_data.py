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

"""Cohorts for ``tied_autoencoder.py``: small enough to live on the device, and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandZoomd,
    ResizeWithPadOrCrop,
)
from torch import Tensor

__all__ = ["Cohort", "augmentation", "prepare"]

REGIONS = ("WT", "TC", "ET")
PERCENTILES = (0.5, 99.5)


def prepare(folder: Path, convention: str, spacing: float, output: Path, multiple: int = 8) -> None:
    """Cut out the brains of a folder of cases, average to ``spacing`` and store all in one file of bytes.

    Every modality is scaled by percentiles of its brain to 1..255; 0 is background. All cases get one size, a multiple
    of ``multiple``.
    """
    from monai_rrr.data import BrainBoxCache, LoadBrainBoxd, load_datalist
    from monai_rrr.transforms import to_regions

    with TemporaryDirectory() as cache:
        load = LoadBrainBoxd(BrainBoxCache(cache, spacing), with_label=True)
        cases = load_datalist(folder, with_labels=True)
        images, labels = [], []
        for case in cases:
            box = load(case)
            image, brain = np.asarray(box["image"], np.float32), np.asarray(box["brain"])
            low, high = np.percentile(image[:, brain], PERCENTILES, axis=1)[..., None, None, None]
            bytes_ = 1 + 254 * np.clip((image - low) / np.maximum(high - low, 1e-6), 0, 1)
            images.append(np.where(brain, bytes_.round(), 0).astype(np.uint8))
            labels.append(np.asarray(to_regions(box["label"][0], convention), np.uint8) * brain)
    size = [-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (1, 2, 3)]
    fit = ResizeWithPadOrCrop(size)
    image, label = (np.stack([np.asarray(fit(array)) for array in found]) for found in (images, labels))
    weights = np.array([1, 2, 4]).reshape(1, 3, 1, 1, 1)
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        output,
        image=image.astype(np.uint8),
        label=(label * weights).sum(1).astype(np.uint8),
        case_id=np.array([str(case["case_id"]) for case in cases]),
    )


@dataclass(frozen=True)
class Cohort:
    """Cases in memory.

    Args:
        image: uint8 ``N M HWD``, 0 outside the brain.
        label: uint8 ``N HWD``: 1, 2 and 4 added for WT, TC and ET.
        case_id: names.
        input_scaling: ``unit`` gives images in [0, 1], ``zscore`` zero mean and unit deviation in the brain.
    """

    image: Tensor
    label: Tensor
    case_id: tuple[str, ...]
    input_scaling: str = "unit"

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Cohort:
        """Read what :func:`prepare` wrote."""
        with np.load(path) as found:
            image, label = (torch.from_numpy(found[name]).to(device) for name in ("image", "label"))
            return cls(image, label, tuple(found["case_id"].tolist()))

    def part(self, indices: Sequence[int], input_scaling: str | None = None) -> Cohort:
        """Return some of the cases."""
        index = torch.tensor(list(indices), device=self.image.device)
        names = tuple(self.case_id[i] for i in indices)
        return Cohort(self.image[index], self.label[index], names, input_scaling or self.input_scaling)

    def __len__(self) -> int:
        return len(self.case_id)

    def case(self, index: int) -> dict[str, Tensor]:
        """Return image ``MHWD``, regions ``KHWD`` and brain ``1HWD`` of a case."""
        stored = self.image[index]
        brain = (stored != 0).any(0, keepdim=True)
        image = stored.float() / 255
        if self.input_scaling == "zscore":
            count = brain.sum()
            mean = (image * brain).sum((1, 2, 3), keepdim=True) / count
            std = ((image - mean).square() * brain).sum((1, 2, 3), keepdim=True).div(count).sqrt()
            image = (image - mean) / std.clamp(min=1e-6) * brain
        label = torch.stack([(self.label[index] & bit) > 0 for bit in (1, 2, 4)]).float()
        return {"image": image, "label": label, "brain": brain.float()}

    @property
    def tags(self) -> Tensor:
        """Whether each case shows each region, ``NK``."""
        return torch.stack([((self.label & bit) > 0).flatten(1).any(1) for bit in (1, 2, 4)], 1).float()


def augmentation(strong: bool, seed: int) -> Compose:
    """The transforms of a training case, on its device; ``strong`` adds those of nnU-Net that are missing."""
    image, both = ["image"], ["image", "label", "brain"]
    steps: list[Any] = [RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)]
    if strong:
        mode = ["trilinear", "nearest", "nearest"]
        steps += [RandZoomd(both, prob=0.2, min_zoom=0.8, max_zoom=1.2, mode=mode, padding_mode="constant")]
        steps += [RandGaussianSmoothd(image, prob=0.1), RandAdjustContrastd(image, prob=0.15, gamma=(0.7, 1.5))]
    steps += [
        RandScaleIntensityd(image, factors=0.2, prob=0.5, channel_wise=True),
        RandShiftIntensityd(image, offsets=0.1, prob=0.5),
        RandGaussianNoised(image, prob=0.15, std=0.05),
    ]
    return Compose(steps).set_random_state(seed)


def batch_of(cohort: Cohort, indices: Sequence[int], augment: Compose | None) -> dict[str, Tensor]:
    """Collate cases; augmented images are 0 outside the brain again."""
    found = [cohort.case(i) for i in indices]
    if augment is not None:
        found = [augment(case) for case in found]
    batch = {key: torch.stack([torch.as_tensor(case[key]) for case in found]) for key in ("image", "label", "brain")}
    batch["image"] = batch["image"] * batch["brain"]
    return batch
