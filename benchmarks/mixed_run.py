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

"""Training and scoring of one run of ``mixed_supervision.py``: the bundle's own files, in this process."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixed_arms import ARMS, manifest_of
from monai import bundle
from monai.bundle import ConfigParser
from monai.transforms import Compose

from monai_rrr.data import load_datalist, load_mixed, read_tags
from monai_rrr.data.nifti import read_verified
from monai_rrr.handlers import HeatmapEvaluation
from monai_rrr.metrics import apply_threshold, region_scores
from monai_rrr.transforms import SaveHeatmapsd, to_regions
from monai_rrr.utils.enums import MODALITIES, REGIONS
from monai_rrr.utils.weights import load_weights

__all__ = ["run", "run_missing"]

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "brats_mri_right_reasons"
CONVENTION = "brats2018"
EPOCH = 36
"""Most steps of an epoch where cases are few: some parts of a training are done once in each."""

SUBSETS = tuple(chosen for count in range(4, 0, -1) for chosen in combinations(MODALITIES, count))


def run(config: Mapping[str, Any], data: Mapping[str, Path], work: Path) -> dict[str, Any]:
    """Train and score one arm.

    Args:
        config: ``arm``, ``seed``, ``steps``, and ``set``: entries of the bundle's configuration to override.
        data: ``team`` with the training cases, ``tags`` of them, ``test`` with the cases to score.
        work: folder for weights, logs and cached images.
    """
    arm, seed = ARMS[config["arm"]], config["seed"]
    folder = work / f"{config['arm']}_seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left: the bundle refuses to train over it
    folder.mkdir(parents=True)
    cases = load_mixed(data["team"] / "datalist.json", tags=read_tags(data["tags"]))
    entries = manifest_of(arm, cases, seed)
    (folder / "datalist.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    per_case, per_epoch = slabs_of(entries, arm.batch_size)
    epochs = max(1, round(config["steps"] / per_epoch))
    begin = time.process_time()
    bundle.run(
        config_file=[str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", *arm.overlays)],
        logging_file=False,
        dataset_dir=str(folder),
        output_dir=str(folder),
        ckpt_dir=str(folder / "models"),
        test_section="",
        seed=seed,
        slabs_per_case=per_case,
        batch_size=arm.batch_size,
        epochs=epochs,
        **settings_of(config, work),
    )
    busy = time.process_time() - begin
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {
        "config": dict(config),
        "steps": epochs * per_epoch,
        "step_seconds": busy / (epochs * per_epoch),
        "supervision": record["settings"]["supervision"],
        "drawn": [str(entry["case_id"]) for entry in entries if "annotations" in entry],
        **score(folder, data["test"], settings_of(config, work), SUBSETS[:1]),
    }


def run_missing(config: Mapping[str, Any], data: Mapping[str, Path], work: Path) -> dict[str, Any]:
    """Score a finished run with every set of modalities that may be there; seconds are those of a set."""
    begin = time.process_time()
    folder = work / f"{config['arm']}_seed{config['seed']}"
    found = score(folder, data["test"], settings_of(config, work), SUBSETS)
    return {"config": dict(config), "step_seconds": (time.process_time() - begin) / len(SUBSETS), **found}


def settings_of(config: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Entries of the configuration that training and inference share."""
    return {**config["set"], "bundle_root": str(BUNDLE), "cache_dir": str(work / "cache"), "device": "cpu"}


def slabs_of(entries: Sequence[Mapping[str, Any]], batch_size: int) -> tuple[int, int]:
    """Slabs of a case per epoch, and steps of an epoch; 180 steps are whole epochs of all arms with 40 cases.

    Half of a batch has masks where some cases have them and others don't; then an epoch is one pass over the others.
    """
    drawn = sum("annotations" in entry for entry in entries)
    rest = len(entries) - drawn
    pool, part = (rest, batch_size - max(1, batch_size // 2)) if drawn and rest else (len(entries), batch_size)
    per_case = max(1, EPOCH * part // pool)
    return per_case, pool * per_case // part


def score(folder: Path, test: Path, settings: Mapping[str, Any], subsets: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """Dice of the consensus and of the heatmaps with the truth, for every test case and set of modalities.

    The network, its inferer and what follows it are those of ``inference.yaml``; a modality that is left out is 0 and
    said to be absent, as where its file is missing.
    """
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    known = set(parser.get())
    parser.update({key: value for key, value in settings.items() if key in known})
    parser["per_modality"] = False
    network = parser.get_parsed_content("network_def").eval()
    load_weights(network, folder / "models" / "model.pt", require_manifest=True)
    inferer, prepare = parser.get_parsed_content("inferer"), parser.get_parsed_content("preprocessing")
    # all that comes before files are written
    after = Compose(
        takewhile(lambda t: not isinstance(t, SaveHeatmapsd), parser.get_parsed_content("postprocessing").transforms)
    )
    cases = load_datalist(test, with_labels=True)
    items = [prepare(case) for case in load_datalist(test)]
    truths = [truth_of(case) for case in cases]
    found: dict[str, Any] = {"dice": {}}
    for subset in subsets:
        table = HeatmapEvaluation(
            cases, CONVENTION, network, folder / "unused", scores=("dice",), baselines=False, key="heatmap"
        )
        consensus: dict[str, list[float]] = {}
        gated: dict[str, list[float]] = {}
        for item, (truth, spacing) in zip(items, truths, strict=True):
            keep = torch.tensor([name in subset for name in MODALITIES])
            image, present = item["image"] * keep[:, None, None, None], torch.as_tensor(item["present"]) & keep
            pred = inferer(image[None], network, present=present[None])
            pred["annotators"] = pred["annotators"][:, :1]  # nobody asks for the versions of single annotators
            done = after({**item, "pred": {name: value[0] for name, value in pred.items()}})
            table.add(str(item["case_id"]), torch.as_tensor(done["heatmap"]), np.asarray(done["heatmap"].affine))
            mask = np.asarray(to_regions(np.asarray(done["label_map"][0]), CONVENTION)).astype(bool)
            dice = region_scores(mask, truth, spacing, scores=("dice",))
            consensus[str(item["case_id"])] = [round(dice[region]["dice"], 4) for region in REGIONS]
            mask &= shown(np.asarray(done["heatmap"]), network.operating_point.tolist(), spacing)
            dice = region_scores(mask, truth, spacing, scores=("dice",))
            gated[str(item["case_id"])] = [round(dice[region]["dice"], 4) for region in REGIONS]
        results = {"consensus": consensus, "gated": gated, "heatmap": heatmap_dice(table.rows)}
        found["dice"][",".join(subset)] = results
    found["tumor"] = [str(case["case_id"]) for case, (truth, _) in zip(cases, truths, strict=True) if truth[0].any()]
    found["operating_point"] = network.operating_point.tolist()
    return found


def shown(
    heatmap: np.ndarray[Any, Any], points: Sequence[tuple[float, float]], spacing: tuple[float, ...]
) -> np.ndarray[Any, Any]:
    """Axial slices ``K 1 1 Z`` on which the heatmaps show the region, at the thresholds that the tags chose."""
    masks = [apply_threshold(one, *point, spacing) for one, point in zip(heatmap, points, strict=True)]
    return np.stack(masks).any((1, 2), keepdims=True)


def truth_of(case: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], tuple[float, ...]]:
    """True regions of a case on its files' voxels, and their size in mm."""
    label = read_verified(case["label"])
    spacing = tuple(float(value) for value in np.linalg.norm(label.affine[:3, :3], axis=0))
    return np.asarray(to_regions(np.ascontiguousarray(label.array), CONVENTION)).astype(bool), spacing


def heatmap_dice(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Dice of each case at the threshold that the tags chose."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["threshold"] == "tag_calibrated":
            found.setdefault(str(row["case_id"]), []).append(round(float(row["dice"]), 4))
    return found
