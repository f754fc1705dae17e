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

"""Demonstration weights of the bundle ``brats_mri_right_reasons``, from synthetic cases alone.

    python benchmarks/demo_weights.py work/demo

makes a cohort and what six simulated annotators draw of it, trains the bundle as its users do, with the settings that
``inference.yaml`` has, and puts ``model.pt`` with its manifest into the bundle's ``models``. The embeddings that the
prototype banks remember are left out: a training that begins with these weights remembers its own, and they are nine
tenths of the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from monai import bundle

from monai_rrr.data import TeamSettings, derive_tags, generate_cohort, load_datalist, make_annotators, write_tags
from monai_rrr.utils.tensor_file import read_tensors, write_tensors

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "brats_mri_right_reasons"
CONVENTION = "brats2018"
COHORT: dict[str, Any] = {"cases": 24, "seed": 2026, "spacing": 3.0, "controls": 0.15}
TRAINING: dict[str, Any] = {"epochs": 34, "seed": 0, "test_section": "", "device": "cpu"}


def prepare(work: Path) -> tuple[Path, Path]:
    """Make the cohort, unless it is there; return the folder with the datalist, and the table of tags."""
    team, tags = work / "team", work / "tags.csv"
    if not tags.exists():
        generate_cohort(work / "cohort", **COHORT)
        cases = load_datalist(work / "cohort", with_labels=True)
        make_annotators(cases, CONVENTION, team, TeamSettings(held_out=0.0))
        write_tags(tags, derive_tags(cases, CONVENTION))
    return team, tags


def without_memory(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights whose banks remember no embeddings; zeros of one element's storage take no room in a file."""
    forgotten = {name: torch.zeros(()).expand_as(value) for name, value in state.items() if name.endswith(".queue")}
    entered = {name: torch.zeros_like(value) for name, value in state.items() if name.endswith(".entered")}
    return {**state, **forgotten, **entered}


def main() -> None:
    """Make the cohort, train, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for cohort, logs and checkpoints")
    parser.add_argument("--output", type=Path, default=BUNDLE / "models" / "model.pt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    team, tags = prepare(work)
    bundle.run(
        config_file=str(BUNDLE / "configs" / "train.yaml"),
        logging_file=False,
        bundle_root=str(BUNDLE),
        dataset_dir=str(team),
        tags_file=str(tags),
        output_dir=str(work / "eval"),
        ckpt_dir=str(work / "models"),
        **TRAINING,
    )
    state = without_memory(read_tensors(work / "models" / "model.pt"))
    about = {"made_by": "python benchmarks/demo_weights.py", "trained_on": {"monai-rrr phantom": COHORT}, **TRAINING}
    write_tensors(arguments.output, state, {"about": about})
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
