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

"""From labels that were handed in to new weights: a datalist, slice tags, and the bundle's own training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_rrr.bundle import end_of_log, pass_gate, start_bundle
from monai_rrr.data.datalist import Case
from monai_rrr.data.tags import Tags, derive_tags, write_tags
from monai_rrr.errors import ConfigError, DataError
from monai_rrr.label.cases import images_of
from monai_rrr.label.evidence import write_evidence, write_marks
from monai_rrr.label.model import TRAINED_WITH, BundleModel
from monai_rrr.label.request import TrainRequest
from monai_rrr.label.start import weights_for
from monai_rrr.label.store import EVIDENCE, FINAL, CaseStore
from monai_rrr.utils.enums import REGIONS
from monai_rrr.utils.files import atomic_write
from monai_rrr.utils.tensor_file import read_tensors, write_tensors

__all__ = ["train_bundle"]

CONVENTION = "brats2023"  # of every label that is handed in
LEAST_CASES = 3
MIXED_BATCHES = {  # a few corrected cases among many would hardly be seen
    "_target_": "monai_rrr.data.CaseLoader",
    "dataset": "@train#dataset",
    "batch_sampler": {
        "_target_": "monai_rrr.data.MixedBatchSampler",
        "has_mask": "$['label' in case for case in @guided] * @slabs_per_case",
        "batch_size": "@batch_size",
        "seed": "@seed",
    },
    "num_workers": "@num_workers",
}
ANY_TAG = 1_000_000  # slices: an evidence mask is no outline of the tumor


def train_bundle(
    model: BundleModel, store: CaseStore, request: TrainRequest, tags: Mapping[str, Tags] | None = None
) -> dict[str, Any]:
    """Train a bundle with the labels of a store, and put the new weights in place when all went well.

    Every annotator's newest ``final`` label counts where the bundle tells annotators apart, else the newest of the
    case; of ``evidence`` labels, it is the newest of the case. A bundle for mixed supervision gets them as what they
    are, beside tags and outlines (see :class:`~monai_rrr.data.LoadEvidenced`). In others with a guidance term they join
    the masks that guide heatmaps: evidence is allowed in the tumor and where 1 was drawn, and not allowed where 2 was
    drawn (see :func:`~monai_rrr.label.evidence.write_evidence`); the guidance is then ``energy``, which asks nothing of
    the places where evidence is allowed. Half of every batch are cases with such a mask, however few there are.

    A training that goes on from the served weights keeps what does not belong to annotators, and the kernels of those
    who drew before (see :func:`~monai_rrr.label.start.weights_for`).

    Args:
        model: trained; its folder receives the weights.
        store: labels.
        request: options.
        tags: slice tags of cases that have no ``final`` label. Those of the others are derived from it.

    Returns:
        JSON values: what was trained with, and the SHA-256 of the weights.

    Raises:
        DataError: ``label-too-few``; faults of the labels.
        ConfigError: when the gate refuses the bundle, or it has no training.
        RuntimeError: with the end of the log, when training fails; the weights are those of before.
    """
    config = model.folder / "configs" / "train.yaml"
    if not config.is_file():
        raise ConfigError("config-missing", "expected configs/train.yaml", path=model.folder)
    plain = ConfigParser.load_config_file(config)
    work = model.work / "training" / model.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if "annotators" in plain and "tags_file" in plain:
        options, report = _mixed(store, work, request, model.annotators, tags or {})
    elif "annotators" in plain:
        options, report = _annotated(store, work, request)
    else:
        options, report = _guided(store, work, request, plain, tags or {})
    options = {
        **{key: value for key, value in model.settings.items() if key in plain},
        **options,
        "label_convention": CONVENTION,
        "epochs": request.epochs,
        "seed": request.seed,
        "ckpt_dir": str(work / "models"),
        "output_dir": str(work / "eval"),
        "cache_dir": str(model.work / "cache"),
    }
    overlay: dict[str, Any] = {}
    if "guided" in plain and report.get("masks", 0) + report.get("evidence_masks", 0):
        overlay["train::dataloader"] = MIXED_BATCHES
    if request.pretrained and model.weights.is_file():
        start = model.weights
        if "annotators" in plain:
            start = _for_annotators(start, {**plain, **options}, work / "pretrained.pt")
        overlay["+train::handlers"] = [_loader(start)]
    configs = [config]
    if overlay:
        configs.append(work / "overlay.json")
        atomic_write(configs[-1], json.dumps(overlay).encode())
    pass_gate(model.folder, configs, options, base=model.folder)
    _run(model.folder, configs, options, work / "train.log")
    weights = work / "models" / "model.pt"
    content = read_tensors(weights)
    shape = {"annotators": report["annotators"]} if "annotators" in report else {}
    write_tensors(model.weights, content, {TRAINED_WITH: {**model.settings, **shape}, "trained": report})
    return {**report, "epochs": request.epochs, "log": str(work / "train.log")}


def _annotated(store: CaseStore, work: Path, request: TrainRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for one in store.submissions(FINAL):
        entry = entries.setdefault(one.case_id, {**images_of(store.case(one.case_id)), "annotations": {}})
        entry["annotations"][one.annotator] = str(one.path)
    _enough(len(entries))
    names = sorted({name for entry in entries.values() for name in entry["annotations"]})
    options = _divided([entries[name] for name in sorted(entries)], work, request)
    return {**options, "annotators": names}, {"cases": len(entries), "annotators": names}


def _mixed(
    store: CaseStore, work: Path, request: TrainRequest, served: Sequence[str], given: Mapping[str, Tags]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cases with whatever there is of each: slice tags, outlines by annotators, marks of evidence."""
    entries: list[dict[str, Any]] = []
    names: set[str] = set()
    marked = 0
    for case_id in sorted(store.cases):
        finals, evidence = store.submissions(FINAL, case_id), store.newest(case_id, EVIDENCE)
        entry = images_of(store.case(case_id))
        tags = given.get(case_id)
        if finals:
            entry["annotations"] = {one.annotator: str(one.path) for one in finals}
            names |= set(entry["annotations"])
            tags = derive_tags([{**entry, "label": str(finals[-1].path)}], CONVENTION)[case_id]
        if tags is None:
            continue
        entry["tags"] = tags
        if evidence is not None and (marks := write_marks(evidence.path, work / "evidence")):
            entry["evidence"] = {name: str(path) for name, path in marks.items()}
            marked += 1
        entries.append(entry)
    _enough(len(entries))
    annotators = sorted(names) or list(served)
    # what somebody drew is for training: the first ones are held out
    entries.sort(key=lambda entry: ("annotations" in entry) + 2 * ("evidence" in entry))
    options = _divided(entries, work, request)
    report = {"cases": len(entries), "annotators": annotators, "evidence_masks": marked}
    return {**options, "annotators": annotators, "allow_absent": list(REGIONS)}, report


def _divided(entries: Sequence[Mapping[str, Any]], work: Path, request: TrainRequest) -> dict[str, Any]:
    """Write the datalist, of which the first entries are held out."""
    count = min(max(1, round(request.held_out * len(entries))), len(entries) - 2)
    sections = {"training": entries[count:], "test": entries[:count]}
    atomic_write(work / "datalist.json", json.dumps(sections, indent=1).encode())
    return {"dataset_dir": str(work), "batch_size": min(2, len(sections["training"]))}


def _guided(
    store: CaseStore, work: Path, request: TrainRequest, plain: Mapping[str, Any], given: Mapping[str, Tags]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cases with slice tags; the masks among them guide where the bundle reads masks."""
    entries, counted = [], {"final": 0, "evidence": 0}
    drawn: list[Case] = []
    tags: dict[str, Tags] = {}
    for case_id in sorted(store.cases):
        final, evidence = store.newest(case_id, FINAL), store.newest(case_id, EVIDENCE)
        if final is not None:
            drawn.append({**images_of(store.case(case_id)), "label": str(final.path)})
        elif case_id in given:
            tags[case_id] = given[case_id]
        else:
            continue
        entry = images_of(store.case(case_id))
        if evidence is not None and "guidance" in plain:
            target = work / "evidence" / f"{evidence.path.name.removesuffix('.gz')}.gz"
            entry["label"] = str(write_evidence(evidence.path, None if final is None else final.path, target))
            counted["evidence"] += 1
        elif final is not None:
            entry["label"] = str(final.path)
            counted["final"] += 1
        entries.append(entry)
    _enough(len(entries))
    tags |= derive_tags(drawn, CONVENTION)
    atomic_write(work / "datalist.json", json.dumps({"training": entries}, indent=1).encode())
    write_tags(work / "tags.csv", tags)
    options: dict[str, Any] = {
        "dataset_dir": str(work / "datalist.json"),
        "tags_file": str(work / "tags.csv"),
        "held_out": request.held_out,
        "allow_absent": list(REGIONS),
        "batch_size": min(int(plain.get("batch_size", 2)), 2),
    }
    if "mask_share" in plain:
        options["mask_share"] = 1.0
    if counted["evidence"]:
        options |= {"guidance": "energy", "verified#tag_tolerance": ANY_TAG}
    return options, {"cases": len(entries), "masks": counted["final"], "evidence_masks": counted["evidence"]}


def _enough(count: int) -> None:
    if count < LEAST_CASES:
        message = f"expected labels of at least {LEAST_CASES} cases, got {count}"
        hint = "hand in more: PUT /datastore/label?image=ID&tag=final"
        raise DataError("label-too-few", message, field=FINAL, hint=hint)


def _loader(weights: Path) -> dict[str, Any]:
    return {"_target_": "monai_rrr.handlers.WeightsLoader", "network": "@network_def", "load_path": str(weights)}


def _for_annotators(served: Path, config: Mapping[str, Any], target: Path) -> Path:
    """Write weights that fit the annotators of a configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(config["seed"])
        fresh = ConfigParser(dict(config)).get_parsed_content("network_def").state_dict()
    write_tensors(target, weights_for(fresh, read_tensors(served)))
    return target


def _run(bundle: Path, configs: Sequence[Path], options: Mapping[str, Any], log: Path) -> None:
    """Run the training in a process of its own; what it prints goes to the log."""
    with log.open("w", encoding="utf-8") as file, start_bundle(bundle, configs, options, file) as process:
        try:
            process.wait()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(f"training ended with code {process.returncode}; {end_of_log(log)}")
