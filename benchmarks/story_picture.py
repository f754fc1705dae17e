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

"""The picture of the README: one synthetic case, and what the demonstration weights of the flagship bundle say of it.

    monai-rrr phantom work/story/studies --cases 6 --seed 78 --spacing 2 --controls 0
    python -m monai.bundle run --config_file bundles/brats_mri_right_reasons/configs/inference.yaml \
        --bundle_root bundles/brats_mri_right_reasons --dataset_dir work/story/studies --output_dir work/story/out \
        --training_list work/demo_weights/team/datalist.json
    python benchmarks/story_picture.py work/story --case Phantom_78_0002 --output docs/story.png

``work/demo_weights`` is what ``make demo-weights`` leaves: the training cases of the weights, whose patches are shown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from numpy.typing import NDArray

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442")
TRUTH, CONSENSUS = "#56B4E9", "#E69F00"


def volume(path: Path) -> NDArray[Any]:
    """Voxels of a file: x to the right, y to the front, z up."""
    image: Any = nib.as_closest_canonical(nib.load(path))  # type: ignore[no-untyped-call]
    return np.asarray(image.dataobj)


def show(axis: Any, image: NDArray[Any], title: str) -> None:
    """A slice, seen from the front or from below: the patient's right is on the left."""
    axis.imshow(image[::-1].T, origin="lower", cmap="gray", vmax=np.quantile(image[image > 0], 0.995))
    for limit, places in ((axis.set_xlim, (image[::-1] > 0).any(1)), (axis.set_ylim, (image > 0).any(0))):
        inside = np.flatnonzero(places)
        limit(inside[0] - 3, inside[-1] + 3)
    axis.set_title(title, fontsize=10)
    axis.axis("off")


def outline(axis: Any, mask: NDArray[Any], color: str, width: float = 1.2, style: str = "solid") -> None:
    """The border of a mask."""
    axis.contour(mask[::-1].T, levels=[0.5], colors=color, linewidths=width, linestyles=style)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder with studies and out")
    parser.add_argument("--case", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    case, work = arguments.case, arguments.work
    images, cases, own = work / "studies" / case, work / "out" / "cases" / case, work / "out" / "annotators" / case
    flair, truth = volume(images / f"{case}_flair.nii.gz"), volume(images / f"{case}_seg.nii.gz") > 0
    heatmap, found = volume(cases / f"{case}_heatmap_WT.nii.gz"), volume(cases / f"{case}_pred.nii.gz") > 0
    masks = {path.name.split("_seg_")[1][:2]: volume(path) > 0 for path in sorted(own.glob(f"{case}_seg_a*.nii.gz"))}
    y, z = (int(truth.sum(axes).argmax()) for axes in ((0, 2), (0, 1)))
    slices = np.flatnonzero(truth.any((0, 1)))
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())

    figure = plt.figure(figsize=(13.5, 7.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    axes = left.subplots(2, 2)
    told = f"1. What it is told: tumor on slices {slices[0]} to {slices[-1]}\n(and masks by six people, on other cases)"
    show(axes[0, 0], flair[:, y], told)
    for k in (slices[0], slices[-1]):
        axes[0, 0].axhline(k, color=TRUTH, linewidth=1.2)
    show(axes[0, 1], flair[:, :, z], "2. Where it looks: heatmap of the whole tumor\n")
    heat = heatmap[:, :, z]
    axes[0, 1].imshow(
        heat[::-1].T, origin="lower", cmap="inferno", alpha=0.8 * np.clip(heat[::-1].T, 0, 1), vmin=0, vmax=1
    )
    show(
        axes[1, 0], flair[:, :, z], f"3. What it says: Dice {dice:.2f}\norange: consensus, blue: the truth, never seen"
    )
    outline(axes[1, 0], found[:, :, z], CONSENSUS)
    outline(axes[1, 0], truth[:, :, z], TRUTH, style="dashed")
    show(axes[1, 1], flair[:, :, z], "4. Who would draw it how\n")
    for color, (name, mask) in zip(COLORS, masks.items(), strict=False):
        outline(axes[1, 1], mask[:, :, z], color, 1.0)
        axes[1, 1].plot([], [], color=color, label=name)
    axes[1, 1].legend(fontsize=7, ncols=6, loc="lower center", handlelength=1, columnspacing=0.8, frameon=False)
    axes[1, 1].get_legend().set(bbox_to_anchor=(0.5, -0.08))
    why = json.loads((own / f"{case}_why.json").read_text(encoding="utf-8"))
    picture = right.subplots()
    picture.imshow(plt.imread(own / f"{case}_why_{why['regions'][0]['region']}.png"))
    picture.set_title("5. Why: the training patches that show the same habit", fontsize=10)
    picture.axis("off")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=95, pil_kwargs={"optimize": True}, metadata={"Software": None})
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
