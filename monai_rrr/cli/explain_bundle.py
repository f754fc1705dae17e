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


"""``monai-rrr explain`` with a bundle of ours: its inference in a process of its own, then a picture of each case."""

from __future__ import annotations

import shutil
from pathlib import Path

from monai_rrr.errors import CheckpointError

from .bundle_run import evaluated, find_bundle, run_bundle
from .console import counted, progress

__all__ = ["infer", "run_inference", "weights_of"]


def weights_of(home: Path, checkpoint: Path | None, trust_weights: bool = False) -> Path:
    """Return the checkpoint that is given, or that of the bundle, after it was compared with its manifest.

    Raises:
        CheckpointError: When there is none, or it is not what its manifest says.
    """
    from monai_rrr.utils.tensor_file import read_tensors

    weights = (checkpoint or home / "models" / "model.pt").resolve()
    if not weights.is_file():
        hint = "train the bundle, or give --checkpoint"
        raise CheckpointError("checkpoint-missing", "expected trained weights, got no file", path=weights, hint=hint)
    read_tensors(weights, require_manifest=not trust_weights)
    return weights


def infer(
    source: Path,
    home: Path,
    weights: Path,
    convention: str,
    work: Path,
    log: Path,
    count: int,
    trust_weights: bool = False,
) -> Path:
    """Run the bundle's ``inference.yaml`` and return the folder with one folder of results per case.

    Args:
        source: folder of cases or JSON datalist.
        home: folder of the bundle.
        weights: checkpoint.
        convention: label values to write.
        work: folder for results and cache.
        log: file for what the process prints.
        count: number of cases, for the bar.
        trust_weights: accept weights without a manifest.
    """
    options: dict[str, object] = {"dataset_dir": source, "output_dir": work / "out", "cache_dir": work / "cache"}
    options |= {"checkpoint": weights, "require_manifest": not trust_weights, "label_convention": convention}
    run_bundle("heatmaps", home, ("inference.yaml",), options, log, lambda: evaluated(work / "out", count))
    return work / "out" / "cases"


def run_inference(
    source: Path,
    folder: Path,
    bundle: str,
    checkpoint: Path | None,
    convention: str,
    work: Path,
    trust_weights: bool = False,
) -> list[Path]:
    """Run the bundle's ``inference.yaml`` on cases and draw a picture of each beside its files; return the pictures.

    Args:
        source: folder of cases or JSON datalist.
        folder: gets one folder per case, and the log.
        bundle: folder or name.
        checkpoint: weights; by default those of the bundle.
        convention: label values to write.
        work: folder for what is not kept.
        trust_weights: accept weights without a manifest.

    Raises:
        CheckpointError: When there is no checkpoint, or it is not what its manifest says.
        ConfigError: When there is no such bundle or convention.
    """
    from monai_rrr.data import load_datalist
    from monai_rrr.report import write_case_picture
    from monai_rrr.utils.conventions import get_convention
    from monai_rrr.utils.files import safe_name

    home = find_bundle(bundle)
    weights = weights_of(home, checkpoint, trust_weights)
    get_convention(convention)
    cases = load_datalist(source, with_labels=False)
    folder.mkdir(parents=True, exist_ok=True)
    written = infer(source, home, weights, convention, work, folder / "explain.log", len(cases), trust_weights)
    pictures = []
    with progress("pictures") as step:
        for case in counted(cases, step):
            name = safe_name(str(case["case_id"]))
            shutil.copytree(written / name, folder / name, dirs_exist_ok=True)
            page = folder / name / f"{name}_why.html"  # of a bundle that draws pictures itself
            pictures.append(page if page.is_file() else write_case_picture(case, folder, convention))
    return pictures
