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


"""``monai-rrr demo``: the whole way from images and slice tags to a report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .bundle_run import EVALUATE, TRAIN, evaluated, find_bundle, run_bundle, trained
from .console import counted, guarded, out, progress
from .report import make_report
from .scores import print_scores
from .verify import CONVENTION_HELP, DATA_HELP

__all__ = ["demo"]

TAG_TOLERANCE = 5
METHODS = {"full": (), "plain_cam": ("plain_cam.yaml",)}


@guarded
def demo(
    data: Annotated[Path | None, typer.Option(help=DATA_HELP + " Without it, a synthetic cohort.")] = None,
    tags: Annotated[Path | None, typer.Option(help="Slice tags; without it, derived from the masks.")] = None,
    convention: Annotated[str, typer.Option(help=CONVENTION_HELP)] = "brats2018",
    folder: Annotated[Path, typer.Option("--out", help="Folder for data, models, heatmaps and logs.")] = Path("demo"),
    report: Annotated[Path, typer.Option(help="Folder for index.html.")] = Path("report"),
    cases: Annotated[int, typer.Option(min=6, help="Cases of the synthetic cohort; a third is held out.")] = 36,
    seed: Annotated[int, typer.Option(min=0, help="Of the synthetic cohort and of training.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the bundle's own number.")] = None,
    allow_absent: Annotated[
        list[str] | None, typer.Option(help="Region (WT, TC, ET) that no training case needs to have; repeatable.")
    ] = None,
    bundle: Annotated[str, typer.Option(help="Folder or name of the bundle.")] = "brats_mri_equivariant_cam",
) -> None:
    """Train on slice tags, segment held-out cases, compare with their masks, and write a report with pictures.

    Each case needs masks here, because the demo also measures how good the result is; training never reads them. The
    method is trained beside its baseline (plain CAM, the same network with tags only). A GPU is used when there is one.

    Example: monai-rrr demo --data BraTS2021 --convention brats2018
    """
    from monai_rrr.data import load_datalist

    home, folder = find_bundle(bundle), folder.resolve()
    data = _cohort(folder / "data", cases, seed) if data is None else data.resolve()
    count, table = _check(data, convention, tags, folder, allow_absent or ())
    for method, overlays in METHODS.items():
        run = folder / method
        shared = {"dataset_dir": data, "tags_file": table, "cache_dir": folder / "cache", "ckpt_dir": run / "models"}
        steering: dict[str, object] = {"seed": seed, "allow_absent": list(allow_absent or ())}
        if epochs is not None:
            steering["epochs"] = epochs
        _train(method, home, overlays, {**shared, "output_dir": run, **steering}, run)
        names = {"label_convention": convention, "method": method, "per_modality": True}
        _evaluate(method, home, {**shared, "output_dir": run / "eval", **names}, run, count)
    runs = [folder / method for method in METHODS]
    page = make_report(runs, load_datalist(data, with_labels=True), convention, report, max_cases=24)
    print_scores(runs)
    out().print(f"report: {page.resolve()}", markup=False)


def _cohort(folder: Path, cases: int, seed: int) -> Path:
    from monai_rrr.data.phantom import generate_cohort

    with progress("synthetic cases") as step:
        generate_cohort(folder, cases, seed, progress=step)
    return folder


def _check(
    data: Path, convention: str, tags: Path | None, folder: Path, allow_absent: Sequence[str]
) -> tuple[int, Path]:
    """Check all files before hours are spent on them; return the number of cases and the table of tags."""
    from monai_rrr.data import derive_tags, load_datalist, verify_dataset, write_tags

    with progress("cases checked") as step:
        # Tags of another reader than that of the masks may differ from them, which is what the demo measures.
        report = verify_dataset(
            data,
            convention,
            tags,
            with_labels=True,
            allow_absent=allow_absent,
            tag_tolerance=TAG_TOLERANCE,
            progress=step,
        )
        report.raise_if_faulty()
    cases = load_datalist(data, with_labels=True)
    if tags is not None:
        return len(cases), tags.resolve()
    with progress("masks read") as step:
        found = derive_tags(counted(cases, step), convention)
    write_tags(folder / "tags.csv", found)
    return len(cases), folder / "tags.csv"


def _train(method: str, home: Path, overlays: Sequence[str], options: dict[str, object], run: Path) -> None:
    for name in ("run.json", "training.csv"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "models" / "resume", ignore_errors=True)
    run_bundle(f"training {method}", home, (*TRAIN, *overlays), options, run / "train.log", lambda: trained(run))


def _evaluate(method: str, home: Path, options: dict[str, object], run: Path, count: int) -> None:
    shutil.rmtree(run / "eval" / "cases", ignore_errors=True)
    held_out = count - int(json.loads((run / "run.json").read_text("utf-8"))["training_cases"])
    log = run / "eval.log"
    run_bundle(f"scoring {method}", home, EVALUATE, options, log, lambda: evaluated(run / "eval", held_out))
