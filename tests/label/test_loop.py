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

"""The loop: a model that follows a letter is served, corrected in three cases, trained, and looks elsewhere."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_rrr.data import (
    DecoySettings,
    derive_tags,
    generate_cohort,
    load_datalist,
    load_decoy,
    make_decoy,
    write_tags,
)
from monai_rrr.metrics import energy_share

SPEC = importlib.util.spec_from_file_location("served", Path(__file__).with_name("served.py"))
helpers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(helpers)

pytestmark = pytest.mark.slow

GUIDED = "brats_mri_guided_attention"
EPOCHS, CORRECTED = 10, 3


@pytest.fixture(scope="module")
def decoy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cohort in which tumor cases carry a letter; its tags say no more than whether there is a tumor."""
    folder = tmp_path_factory.mktemp("loop")
    generate_cohort(folder / "cohort", 40, 0, spacing=6.0, controls=0.5)
    cases = load_datalist(folder / "cohort")
    tags = derive_tags(cases, "brats2018")
    make_decoy(cases, tags, folder / "decoy", DecoySettings(marker="letter", q=0.95, held_out=0.3))
    depth = nib.load(cases[0]["label"]).shape[2]
    known = {case["case_id"] for case in load_decoy(folder / "decoy")}
    whole = {
        case_id: {region: span and (0, depth - 1) for region, span in found.items()} for case_id, found in tags.items()
    }
    write_tags(folder / "reports.csv", {case_id: found for case_id, found in whole.items() if case_id in known})
    return folder


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any], untrained: Callable[[str], Path], decoy: Path) -> Any:
    words = ["--tags", str(decoy / "reports.csv"), "--setting", "channels=[16]", "--setting", "val_interval=1000"]
    return serve(decoy / "decoy" / "datalist.json", [untrained(GUIDED)], *words)


def heatmap_of(server: Any, case: Mapping[str, Any]) -> Any:
    """Upload the files of a case and return the heatmap of the whole tumor."""
    files = [("file", (Path(path).name, Path(path).read_bytes())) for path in case["modalities"].values()]
    params = {"params": json.dumps({"heatmap": "WT", "levels": 0})}
    answer = server.call("POST", f"/infer/{GUIDED}_heatmap?output=image", data=params, files=files)
    assert answer.status_code == 200, answer.text
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)


def share(heatmap: Any, path: str) -> float:
    region = np.asarray(nib.load(path).dataobj) > 0
    return float(energy_share(torch.tensor(heatmap)[None, None], torch.tensor(region)[None, None]))


def look(server: Any, decoy: Path) -> dict[str, float]:
    """Mean share of the evidence in the tumor and on the letter, and accuracy on `conflicting`."""
    seen = [(case, heatmap_of(server, case)) for case in load_decoy(decoy / "decoy", "iid") if case["class_label"]]
    right = [
        (heatmap_of(server, case).max() > 0.5) == bool(case["class_label"])
        for case in load_decoy(decoy / "decoy", "conflicting")
    ]
    return {
        "tumor": float(np.mean([share(heatmap, case["label"]) for case, heatmap in seen])),
        "letter": float(np.mean([share(heatmap, case["marker_mask"]) for case, heatmap in seen if case["marker"]])),
        "conflicting": float(np.mean(right)),
    }


def train(server: Any, **options: Any) -> dict[str, Any]:
    server.json("POST", f"/train/{GUIDED}", json={"max_epochs": EPOCHS, "val_split": 0.0, **options})
    task = server.wait("train")
    assert task["status"] == "DONE", f"{list(task['details'])}\n{server.tail()}"
    record = json.loads((server.work / "bundles" / GUIDED / "models" / "model.pt.json").read_text())
    trained: dict[str, Any] = record["trained"]
    return trained


def test_a_few_corrections_move_the_evidence(server: Any, decoy: Path) -> None:
    assert train(server, pretrained=False)["evidence_masks"] == 0
    before = look(server, decoy)
    marked = [case for case in load_decoy(decoy / "decoy") if case["class_label"] and case["marker"]]
    for case in marked[:CORRECTED]:
        tumor = nib.load(case["label"])
        marks = ndimage.binary_dilation(np.asarray(tumor.dataobj) > 0).astype(np.uint8)
        letter = np.asarray(nib.load(case["marker_mask"]).dataobj).astype(np.uint8)
        marks[ndimage.find_objects(letter)[0]] = 2
        server.json(
            "PUT",
            f"/datastore/label?image={case['case_id']}&tag=evidence",
            data={"params": '{"annotator": "reader_1"}'},
            files={"label": ("marks.nii.gz", helpers.as_file(marks, tumor.affine))},
        )
    report = train(server)
    assert (report["cases"], report["evidence_masks"]) == (28, CORRECTED)
    after = look(server, decoy)
    said = f"before {before}, after {after}"
    assert after["tumor"] > 1.2 * before["tumor"], said
    assert after["letter"] < 0.8 * before["letter"], said
    assert after["conflicting"] >= before["conflicting"], said
