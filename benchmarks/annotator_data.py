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

"""Cohorts of ``annotator_tendency.py``: cubes around tumors, what simulated annotators drew there, and the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from monai.transforms import SpatialCrop
from torch import Tensor

__all__ = ["Cohort", "add_annotator_to", "keep_some", "permute_names", "prepare"]

TRUTH = "truth"
SECTIONS = ("training", "adaptation", "test")


def prepare(folder: Path, convention: str, settings: Any, spacing: float, size: int, output: Path) -> None:
    """Let a team of simulated annotators draw every case, cut cubes around the tumors and store all in one file.

    The center of a cube is that of what anybody drew. Masks are drawn at the spacing of the files.
    """
    from monai_rrr.data import (
        BrainBoxCache,
        LoadAnnotationsd,
        LoadBrainBoxd,
        load_datalist,
        make_annotators,
        read_annotators,
    )
    from monai_rrr.transforms import WholeVolumed

    source = load_datalist(folder, with_labels=True)
    truth = {case["case_id"]: case["label"] for case in source}
    found: dict[str, list[Any]] = {name: [] for name in ("image", "masks", "case_id", "section", "site", "inside")}
    with TemporaryDirectory() as scratch:
        team = make_annotators(source, convention, Path(scratch) / "team", settings)
        manifest = read_annotators(team)
        names = sorted(manifest["annotators"])
        plans = {case["case_id"]: case for case in manifest["cases"]}
        load = LoadBrainBoxd(BrainBoxCache(Path(scratch) / "cache", spacing))
        whole = WholeVolumed((size, size, size), spacing)
        annotations = LoadAnnotationsd([*names, TRUTH], convention)
        listed = json.loads((team / "datalist.json").read_text(encoding="utf-8"))
        for section in [name for name in SECTIONS if listed.get(name)]:
            for case in load_datalist(team / "datalist.json", section=section, with_annotations=True):
                case_id = case["case_id"]
                case["annotations"] = {**case["annotations"], TRUTH: str(truth[case_id])}
                sample = annotations(whole(load(case)))
                image, masks = cube(torch.as_tensor(sample["image"]), sample["annotations"], size)
                found["image"].append(image.half().numpy())
                found["masks"].append(masks.numpy())
                found["case_id"].append(case_id)
                found["section"].append(section)
                found["site"].append(plans[case_id]["site"])
                everything = int((sample["annotations"][-1] > 0).sum())
                found["inside"].append(int((masks[-1] > 0).sum()) / max(everything, 1))
                print(f"{output.stem}: {len(found['image'])} of {len(source)}", flush=True)
    members = [manifest["annotators"][name] for name in names]
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        output,
        **{name: np.stack(values) for name, values in found.items()},
        annotators=np.array(names),
        kinds=np.array([member["kind"] + ("_" if member["leans_on"] else "") for member in members]),
        offsets=np.array([member["settings"]["offset_mm"] for member in members]),
        about=np.array(json.dumps({"spacing": spacing, "size": size, "settings": asdict(settings)})),
    )


def cube(image: Tensor, masks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut a cube around what was drawn; what lies outside of the image is background, that nobody drew stays -1."""
    drawn = (masks > 0).any(0).nonzero()
    center = ((drawn.amin(0) + drawn.amax(0)) // 2).tolist()
    pad = [size // 2] * 6
    shift = [at + size // 2 for at in center]
    crop = SpatialCrop(roi_center=shift, roi_size=[size] * 3)
    known = (masks >= 0).flatten(1).any(1)
    parts = [torch.nn.functional.pad(values, pad) for values in (image.float(), masks)]
    image, masks = (torch.as_tensor(crop(part)) for part in parts)
    return image, torch.where(known[:, None, None, None], masks.clamp(min=0), -1).to(torch.int8)


@dataclass(frozen=True)
class Cohort:
    """Cases in memory.

    Args:
        image: ``N M D H W`` float32.
        masks: ``N R D H W`` int8, -1 where an annotator did not draw the case.
        truth: ``N D H W`` int8.
        case_id: names.
        section: of each case.
        annotators: pseudonyms.
        kinds: what each annotator really does; ``over_`` copies ``over``.
        offsets: mm.
        spacing: mm.
        inside: share of the true tumor that the cube holds.
    """

    image: Tensor
    masks: Tensor
    truth: Tensor
    case_id: tuple[str, ...]
    section: tuple[str, ...]
    annotators: tuple[str, ...]
    kinds: tuple[str, ...]
    offsets: tuple[float, ...]
    spacing: float
    inside: tuple[float, ...]

    @classmethod
    def load(cls, path: Path) -> Cohort:
        """Read what :func:`prepare` wrote."""
        with np.load(path, allow_pickle=False) as found:
            masks = torch.from_numpy(found["masks"])
            return cls(
                torch.from_numpy(found["image"]).float(),
                masks[:, :-1],
                masks[:, -1],
                *(tuple(found[name].tolist()) for name in ("case_id", "section", "annotators", "kinds", "offsets")),
                json.loads(str(found["about"]))["spacing"],
                tuple(found["inside"].tolist()),
            )

    def __len__(self) -> int:
        return len(self.case_id)

    def of(self, section: str) -> Cohort:
        """Return the cases of a section."""
        return self.part([i for i, name in enumerate(self.section) if name == section])

    def part(self, indices: Sequence[int]) -> Cohort:
        """Return some of the cases."""
        index = torch.tensor(list(indices), dtype=torch.int64)
        lists = ("case_id", "section", "inside")
        chosen: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in indices) for name in lists}
        return replace(self, image=self.image[index], masks=self.masks[index], truth=self.truth[index], **chosen)

    def team(self, indices: Sequence[int]) -> Cohort:
        """Return some of the annotators."""
        lists = ("annotators", "kinds", "offsets")
        chosen: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in indices) for name in lists}
        return replace(self, masks=self.masks[:, list(indices)], **chosen)

    @property
    def annotated(self) -> Tensor:
        """Who drew which case, ``N R``."""
        return (self.masks >= 0).flatten(2).any(2)

    def cases(self) -> list[dict[str, Any]]:
        """Return the cases as a trainer takes them: the truth is not among what it sees."""
        drawn = self.annotated
        total, each = drawn.sum(), drawn.sum(0)
        weight = (total / (len(self.annotators) * each.clamp(min=1))).clamp(max=5.0)  # as annotator_weights has it
        return [
            {
                "image": self.image[i],
                "annotations": self.masks[i],
                "annotated": drawn[i],
                "annotator_weight": weight,
                "case_id": self.case_id[i],
            }
            for i in range(len(self))
        ]


def permute_names(cohort: Cohort, seed: int) -> Cohort:
    """Shuffle who drew what, anew in every case."""
    generator = torch.Generator().manual_seed(seed)
    masks = cohort.masks.clone()
    for i in range(len(cohort)):
        masks[i] = masks[i][torch.randperm(masks.shape[1], generator=generator)]
    return replace(cohort, masks=masks)


def keep_some(cohort: Cohort, count: int, seed: int) -> Cohort:
    """Keep the masks of ``count`` annotators per case, every annotator as often as any other."""
    generator = torch.Generator().manual_seed(seed)
    masks, everyone = cohort.masks.clone(), masks_order(len(cohort), cohort.masks.shape[1], count, generator)
    for i, kept in enumerate(everyone):
        gone = [r for r in range(masks.shape[1]) if r not in kept]
        masks[i, gone] = -1
    return replace(cohort, masks=masks)


def masks_order(cases: int, annotators: int, count: int, generator: torch.Generator) -> list[list[int]]:
    """Who draws which case: a window over the annotators in random order, which all cases continue."""
    order = torch.randperm(annotators, generator=generator).tolist()
    places = torch.randperm(cases, generator=generator).tolist()
    return [[order[(place * count + k) % annotators] for k in range(count)] for place in places]


def add_annotator_to(cohort: Cohort, what: str) -> Cohort:
    """Add an annotator at the end: ``blank`` never draws anything, ``duplicate`` copies who draws too large."""
    if what == "blank":
        added, offset = torch.zeros_like(cohort.masks[:, :1]), 0.0
    else:
        index = cohort.kinds.index("over")
        added, offset = cohort.masks[:, index : index + 1], cohort.offsets[index]
    return replace(
        cohort,
        masks=torch.cat([cohort.masks, added], 1),
        annotators=(*cohort.annotators, f"a{len(cohort.annotators) + 1}"),
        kinds=(*cohort.kinds, what),
        offsets=(*cohort.offsets, offset),
    )
