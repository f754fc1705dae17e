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


from __future__ import annotations

import csv
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from monai_rrr.data import load_datalist
from monai_rrr.errors import DataError
from monai_rrr.report import read_run, write_report
from monai_rrr.transforms.regions import to_labels, to_regions
from monai_rrr.utils.enums import REGIONS

COLUMNS = [
    "case_id",
    "method",
    "threshold",
    "region",
    "dice",
    "hd95",
    "assd",
    "truth_ml",
    "pred_ml",
    "level",
    "min_area_mm2",
]
DICE = {"full": (0.8, 0.6, 0.9), "plain_cam": (0.5, 0.4, 0.3)}
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Balance(HTMLParser):
    """Collect tags that are not closed in the order in which they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


def make_run(folder: Path, cases: list[dict], method: str) -> Path:
    """Write a run as the bundle would: blurred masks as heatmaps, scores that are written down here."""
    rows = []
    for case, dice in zip(cases, DICE[method], strict=True):
        label = nib.load(case["label"])
        truth = np.asarray(to_regions(np.asarray(label.dataobj), "brats2018")).astype(bool)
        out = folder / "eval" / "cases" / case["case_id"]
        out.mkdir(parents=True)
        heatmaps = [gaussian_filter(region.astype(np.float32), 1.0) for region in truth]
        for region, heatmap in zip(REGIONS, heatmaps, strict=True):
            for name in ("heatmap", "heatmap_flair", "heatmap_t1c"):
                nib.save(nib.Nifti1Image(heatmap, label.affine), out / f"{case['case_id']}_{name}_{region}.nii.gz")
        masks = np.logical_and.accumulate([heatmap > 0.4 for heatmap in heatmaps]).astype(np.uint8)
        pred = np.asarray(to_labels(masks, "brats2018")).astype(np.uint8)
        nib.save(nib.Nifti1Image(pred, label.affine), out / f"{case['case_id']}_pred.nii.gz")
        sizes = truth.sum((1, 2, 3)) * 0.125
        for region, size in zip(REGIONS, sizes, strict=True):
            base = {"case_id": case["case_id"], "region": region, "hd95": 4.0, "assd": 1.5, "truth_ml": size}
            for threshold, gain in (("label_free", -0.1), ("tag_calibrated", 0.0), ("oracle", 0.05)):
                scores = {"method": method, "threshold": threshold, "dice": round(dice + gain, 5), "pred_ml": size}
                rows.append({**base, **scores, "level": 0.4, "min_area_mm2": 50.0})
            rows.append(
                {**base, "method": "empty", "threshold": "label_free", "dice": float(size == 0), "pred_ml": 0.0}
            )
        flair = {"region": "WT", "truth_ml": sizes[0], "pred_ml": 200.0, "hd95": 60.0, "assd": 20.0, "dice": 0.25}
        rows.append({**flair, "case_id": case["case_id"], "method": "flair_otsu", "threshold": "label_free"})
    with (folder / "eval" / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "training.csv").write_text("step,term,value\n10,total,1.5\n20,total,1.1\n10,classification,1.2\n")
    record = {"weights": {"0.0": {"classification": 1.0}}, "training_cases": 4, "epochs": 7, "seconds": 61.4}
    record |= {"tag_budget": {"cases": 4, "integers": 22, "integers_per_case": 5.5}, "settings": {"seed": 3}}
    record |= {"iterations_per_epoch": 5, "operating_point": [[0.41, 90.0], [0.42, 60.0], [0.43, 30.0]]}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def cases(phantom_cohort: Path) -> list[dict]:
    return load_datalist(phantom_cohort, with_labels=True)[-3:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cases: list[dict]) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / method, cases, method) for method in DICE]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, runs: list[Path], cases: list[dict]) -> str:
    out = tmp_path_factory.mktemp("report")
    steps: list[tuple[int, int]] = []
    path = write_report(runs, cases, "brats2018", out, max_cases=2, progress=lambda *step: steps.append(step))
    assert path == out / "index.html"
    assert steps[-1][0] == steps[-1][1]
    return path.read_text("utf-8")


def visible(page: str) -> str:
    """Return the text without tags, pictures and white space."""
    return " ".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


def test_html_is_balanced(page: str) -> None:
    checker = Balance()
    checker.feed(page)
    assert (checker.faults, checker.open) == ([], [])


def test_page_needs_no_network(page: str) -> None:
    inner = html.unescape(page)
    loading = re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:|#|')([^\"']+)", inner)
    assert [address for address in loading if not address.startswith("<")] == []
    assert re.findall(r"https?://(?!www\.w3\.org)[^\s\"'<)]*", inner) == []
    assert "@import" not in inner


def test_page_holds_no_path(page: str, runs: list[Path], phantom_cohort: Path) -> None:
    text = html.unescape(page)
    assert str(runs[0].parent) not in text
    assert str(phantom_cohort.parent) not in text


def test_numbers(page: str) -> None:
    text = visible(page)
    assert "Full method: WT Dice 0.77" in text
    assert "full method tag-calibrated 0.767 [" in text
    assert "full method oracle (upper bound) 0.817 [" in text
    assert "FLAIR Otsu 0.250 [0.250, 0.250] 60.0" in text
    assert "WT plain CAM tag-calibrated +0.367 [" in text
    assert "WT FLAIR Otsu +0.517 [" in text
    assert "tag budget 22 integers, 5.5 per case" in text
    assert "training 7 epochs of 5 steps time 61 s" in text
    assert "WT 0.410 90 TC 0.420 60 ET 0.430 30" in text
    assert "upper bound, never a result" in text
    assert "Not a medical device" in text


def test_empty_regions_are_counted(page: str) -> None:
    text = visible(page)
    assert "whole tumor, present in 2 of 3 cases" in text
    # the empty mask misses both tumors and invents none
    assert re.search(r"empty mask 0\.333 \[.*?\] 4\.0 \[.*?\] 1\.5 \[.*?\] 2 0", text)


def test_worst_cases_come_first_and_the_rest_is_said_to_be_hidden(page: str, cases: list[dict]) -> None:
    shown = re.findall(r"<h3>\d+\. (\S+?)[ <]", page)
    assert shown == [cases[1]["case_id"], cases[0]["case_id"]]
    assert "The 2 worst of 3 cases are shown" in visible(page)


def test_pictures_are_inside(page: str) -> None:
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert page.count('src="data:image/png;base64,') == 2
    assert "brainsprite" in html.unescape(page)


def test_run_reads_the_folder_of_the_evaluation_too(runs: list[Path]) -> None:
    run = read_run(runs[0] / "eval")
    assert (run.name, run.terms["total"], run.record["epochs"]) == ("full", ((10, 1.5), (20, 1.1)), 7)


def test_run_without_metrics(tmp_path: Path, cases: list[dict]) -> None:
    with pytest.raises(DataError, match=r"\[metrics-missing\].*eval/metrics.csv.*evaluate the run first"):
        write_report([tmp_path], cases, "brats2018", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_metrics_without_a_column(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("case_id,method\na,full\n")
    with pytest.raises(DataError, match=r"\[table-columns\].*'threshold'"):
        read_run(tmp_path)


def test_metrics_with_text_instead_of_a_number(tmp_path: Path) -> None:
    row = "a,full,tag_calibrated,WT,good,1,1,2,2,0.5,0"
    (tmp_path / "metrics.csv").write_text(",".join(COLUMNS) + "\n" + row + "\n")
    with pytest.raises(DataError, match=r"line 2: expected a number in dice, got 'good'"):
        read_run(tmp_path)


def test_case_that_is_not_in_the_datalist(runs: list[Path], cases: list[dict], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"case {cases[0]['case_id']}: expected all 3 scored cases"):
        write_report(runs, cases[1:], "brats2018", tmp_path)


def test_two_runs_of_one_name(runs: list[Path], cases: list[dict], tmp_path: Path) -> None:
    table = (runs[0] / "eval" / "metrics.csv").read_text().replace("tag_calibrated,WT,0.8", "tag_calibrated,WT,0.7")
    (tmp_path / "metrics.csv").write_text(table)
    with pytest.raises(DataError, match=r"\[method-twice\].*got 0.8 and 0.7"):
        write_report([runs[0], tmp_path], cases, "brats2018", tmp_path)


def test_runs_on_other_cases(runs: list[Path], cases: list[dict], tmp_path: Path) -> None:
    lines = (runs[1] / "eval" / "metrics.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(cases[0]["case_id"])]
    (tmp_path / "metrics.csv").write_text("\n".join(kept))
    with pytest.raises(DataError, match="expected the same 3 held-out cases in all runs, 'plain_cam' has 2"):
        write_report([runs[0], tmp_path], cases, "brats2018", tmp_path)


def test_missing_heatmap_is_named(runs: list[Path], cases: list[dict], tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text((runs[0] / "eval" / "metrics.csv").read_text())
    with pytest.raises(DataError, match=r"\[result-missing\] case .*heatmap_WT.nii.gz"):
        write_report([tmp_path], cases, "brats2018", tmp_path)


def test_no_run() -> None:
    with pytest.raises(ValueError, match="expected at least one run and one case to show, got 0 and 24"):
        write_report([], [], "brats2018", "out")
