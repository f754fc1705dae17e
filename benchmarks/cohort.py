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

"""What the benchmarks on small synthetic cohorts share: a packed cohort, a network, training steps, parallel runs.

    monai-rrr phantom cohort --cases 360 --spacing 6 --controls 0.5
    monai-rrr decoy cohort decoy --marker letter --convention brats2018
    python benchmarks/cohort.py decoy decoy.npz

packs the sets of a decoy cohort into one file of 8-bit voxels, small enough to be carried to another machine and to
lie in the memory of its device. Voxels are standardized by the brain alone, the marker left out: what a marker does to
the statistics of the whole image would be a clue without a place, which no loss on heatmaps can reach.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.networks.nets.segresnet_ds import SegResEncoder
from monai.transforms import Compose, CropForegroundd, Orientationd, ResizeWithPadOrCropd
from torch import Tensor, nn

from monai_rrr.attribution import CAM, record
from monai_rrr.data import load_decoy, read_verified
from monai_rrr.engines import explanation_update
from monai_rrr.networks import EncoderClassifier
from monai_rrr.objectives import Objective
from monai_rrr.report import brain_mask, read_image
from monai_rrr.utils.enums import MODALITIES

TRAINING = "training"
TEST_SETS = ("iid", "removed", "random", "conflicting")
IN_AIR = ("letter", "zipper")
STEPS_PER_UNIT = 20  # of the 8-bit voxels: 0.05 standard deviations, up to 6.35
KEYS = ("image", "lesion", "marker")
ATTRIBUTE = CAM("features", head="head")


@dataclass(frozen=True)
class Cases:
    """A set of cases in the memory of one device; ``N`` first.

    Args:
        case_id: names.
        image: ``N M H W D``, standardized by the brain, 0 outside.
        label: ``N 1``, 1 with a lesion, as a tag.
        lesion, brain: ``N 1 H W D`` boolean.
        marker: the same: where the marker is, or would be.
        spacing: voxel size in mm.
    """

    case_id: tuple[str, ...]
    image: Tensor
    label: Tensor
    lesion: Tensor
    brain: Tensor
    marker: Tensor
    spacing: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.case_id)

    def take(self, index: Sequence[int]) -> Cases:
        """Return some of the cases."""
        rows = torch.as_tensor(list(index), device=self.image.device)
        parts = {name: getattr(self, name)[rows] for name in ("image", "label", "lesion", "brain", "marker")}
        return replace(self, case_id=tuple(self.case_id[i] for i in index), **parts)

    def without_marker(self) -> Cases:
        """Erase a marker that lies in the air."""
        return replace(self, image=self.image * ~self.marker)


def pack(folder: Path, out: Path, size: Sequence[int]) -> None:
    """Write all sets of a decoy cohort into one file."""
    settings = json.loads((folder / "decoy.json").read_text(encoding="utf-8"))["settings"]
    arrays: dict[str, Any] = {}
    for section in (TRAINING, *TEST_SETS):
        samples = [_prepared(case, size, settings["marker"] in IN_AIR) for case in load_decoy(folder, section)]
        for key in samples[0]:
            arrays[f"{section}/{key}"] = np.stack([sample[key] for sample in samples])
    np.savez_compressed(out, settings=json.dumps(settings), **arrays)
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


def _prepared(case: Mapping[str, Any], size: Sequence[int], in_air: bool) -> dict[str, Any]:
    axes = (("L", "R"), ("P", "A"), ("I", "S"))
    prepare = Compose(
        [
            Orientationd(keys=KEYS, axcodes="RAS", labels=axes),
            CropForegroundd(keys=KEYS, source_key="image"),
            ResizeWithPadOrCropd(keys=KEYS, spatial_size=size),
        ]
    )
    names = [name for name in MODALITIES if name in case["modalities"]]
    image = read_image(case, names)
    sample: dict[str, Any] = {"image": image}
    for key, path in (("lesion", case.get("label")), ("marker", case.get("marker_mask"))):
        array = np.zeros(image.shape[1:]) if path is None else read_verified(path).array
        sample[key] = MetaTensor(torch.from_numpy(np.ascontiguousarray(array))[None].float(), affine=image.affine)
    ready = {key: value.as_tensor().numpy() for key, value in prepare(sample).items() if key in KEYS}
    voxels, marker = ready["image"].astype(np.float32), ready["marker"] > 0
    plain = voxels * ~marker if in_air else voxels
    brain = brain_mask(dict(zip(names, plain, strict=True)))
    for channel, clean in zip(voxels, plain, strict=True):
        inside = clean[brain]
        channel[channel != 0] = (channel[channel != 0] - inside.mean()) / max(float(inside.std()), 1e-6)
    return {
        "case_id": case["case_id"],
        "image": np.clip(np.rint(voxels * STEPS_PER_UNIT), -127, 127).astype(np.int8),
        "label": np.int8(case["class_label"]),
        "lesion": ready["lesion"] > 0,
        "brain": brain[None],
        "marker": marker,
        "spacing": image.affine[:3, :3].norm(dim=0).numpy(),
    }


def unpack(path: Path, device: torch.device) -> tuple[dict[str, Cases], dict[str, Any]]:
    """Load all sets onto a device; also return the settings of the decoy."""
    sets = {}
    with np.load(path) as content:
        settings: dict[str, Any] = json.loads(str(content["settings"]))
        for section in (TRAINING, *TEST_SETS):
            found = {key: content[f"{section}/{key}"] for key in ("case_id", "image", "label", "spacing")}
            masks = {
                key: torch.from_numpy(content[f"{section}/{key}"]).to(device) for key in ("lesion", "brain", "marker")
            }
            sets[section] = Cases(
                case_id=tuple(map(str, found["case_id"])),
                image=torch.from_numpy(found["image"]).to(device).float() / STEPS_PER_UNIT,
                label=torch.from_numpy(found["label"]).to(device).float()[:, None],
                spacing=tuple(found["spacing"][0].tolist()),
                **masks,
            )
    return sets, settings


def make_network(channels: int, width: int) -> nn.Module:
    """Return a SegResNet encoder of two levels with a linear head for one tag, stride 2.

    One logit, so that its class activation map is all that decides; a softmax over two classes does not see what the
    maps of both share, and evidence against one class could do what evidence for the other must not. A cell sees no
    farther than 8 voxels, so that evidence lies where its cause is; so does batch normalization, other than group and
    instance normalization, which mix all voxels of an image.
    """
    encoder = SegResEncoder(3, width, channels, norm="batch", blocks_down=(1, 1))
    return EncoderClassifier(encoder, 2 * width, num_classes=1)


class Batches(Iterable[dict[str, Any]]):
    """Shuffled batches, indexed where the cases lie; half of the samples mirrored left to right.

    The k-th epoch of a seed is always the same, whatever else is drawn.
    """

    def __init__(self, cases: Cases, extra: Mapping[str, Tensor], batch_size: int, seed: int) -> None:
        self.cases, self.extra = cases, extra
        self.batch_size, self.seed, self.epoch = min(batch_size, len(cases)), seed, 0

    def __len__(self) -> int:
        return len(self.cases) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.cases), generator=generator)
        mirrored = torch.rand(len(self.cases), generator=generator) < 0.5
        columns = {"image": self.cases.image, "brain": self.cases.brain, **self.extra}
        device = self.cases.image.device
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            index, flip = rows.to(device), mirrored[rows].to(device)
            batch: dict[str, Any] = {"case_id": [self.cases.case_id[i] for i in rows.tolist()]}
            batch["class_label"] = self.cases.label[index]
            for name, values in columns.items():
                taken = values[index]
                if taken.ndim > 2:
                    taken = torch.where(flip.reshape(-1, *(1,) * (taken.ndim - 1)), taken.flip(2), taken)
                batch[name] = taken
            yield batch


def fit(network: nn.Module, batches: Batches, objective: Objective, epochs: int, learning_rate: float) -> None:
    """Train in place with the project's own step; one cycle of the learning rate."""
    trainer = make_trainer(network, batches, objective, epochs, learning_rate)
    trainer.run()


def make_trainer(
    network: nn.Module, batches: Batches, objective: Objective, epochs: int, learning_rate: float
) -> SupervisedTrainer:
    """Return MONAI's trainer around the project's step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    total = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=total, pct_start=0.1)

    def step(engine: SupervisedTrainer, batch: Mapping[str, Any]) -> dict[str, Any]:
        output = explanation_update(engine, batch)
        schedule.step()
        return output

    return SupervisedTrainer(
        device=batches.cases.image.device,
        max_epochs=epochs,
        train_data_loader=batches,
        network=network,
        optimizer=optimizer,
        loss_function=objective,
        prepare_batch=lambda batch, *_, **__: batch,
        iteration_update=step,
        decollate=False,
    )


@torch.no_grad()
def predict(network: nn.Module, cases: Cases, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Return logits ``N`` and heatmaps of the tag ``N 1 h w d`` (closed form), on the device."""
    network.eval()
    logits, heatmaps = [], []
    for image in cases.image.split(batch_size):
        trace = record(network, image, ATTRIBUTE.layers)
        logits.append(trace.logits[:, 0])
        heatmaps.append(ATTRIBUTE(trace, torch.zeros(len(image), dtype=torch.long, device=image.device)))
    return torch.cat(logits), torch.cat(heatmaps)


STATE: dict[str, Any] = {}  # of a process: options, sets, decoy


def start(options: Any) -> None:
    """Load the cohort into a process."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    sets, decoy = unpack(options.data, device)
    STATE.update(options=options, sets=sets, decoy=decoy)


def run_all(tasks: Sequence[Any], work: Callable[[Any], str], prepare: Callable[[Any], None], options: Any) -> None:
    """Do tasks in ``options.jobs`` processes, each of which is started once; print what each task returns."""
    if not tasks:
        return
    if options.jobs <= 1:
        prepare(options)
        for task in tasks:
            print(work(task), flush=True)
        return
    context = multiprocessing.get_context("spawn")
    jobs = min(options.jobs, max(1, len(tasks)))
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=prepare, initargs=(options,)) as pool:
        for done, future in enumerate(as_completed([pool.submit(work, task) for task in tasks]), 1):
            print(f"[{done}/{len(tasks)}] {future.result()}", flush=True)


def hardware(device: torch.device) -> str:
    """Name what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} {os.uname().machine} cores"


def main() -> None:
    """Pack a cohort."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of monai-rrr decoy")
    parser.add_argument("out", type=Path, help="file to write, .npz")
    parser.add_argument("--size", nargs=3, type=int, default=[28, 32, 24], help="voxels")
    options = parser.parse_args()
    pack(options.folder, options.out, options.size)


if __name__ == "__main__":
    main()
