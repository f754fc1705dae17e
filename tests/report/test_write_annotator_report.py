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
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from monai_rrr.cli import app
from monai_rrr.data import load_datalist
from monai_rrr.errors import DataError
from monai_rrr.report import (
    annotator_figure,
    is_annotator_run,
    load_annotator_view,
    read_annotator_run,
    write_annotator_report,
)

SIDE, NAMES, CASES = 24, ("a1", "a2"), ("x", "y")
LAS = np.array([[-2.0, 0, 0, 46], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray[Any, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, LAS), path)
    return str(path)


def ball(radius: float) -> np.ndarray[Any, Any]:
    """Edema around enhancing tumor, to the patient's left."""
    x, y, z = np.indices((SIDE,) * 3)
    distance = np.sqrt((x - 8) ** 2 + (y - 12) ** 2 + (z - 10) ** 2)
    return np.where(distance < radius / 2, 4, np.where(distance < radius, 2, 0)).astype(np.uint8)


class Home:
    """An evaluated run of two annotators, a1 draws larger, as the bundle leaves it."""

    def __init__(self, root: Path) -> None:
        self.run, self.data = root / "run", root / "datalist.json"
        entries, rows = [], []
        brain = np.zeros((SIDE,) * 3, np.float32)
        brain[2:-2, 2:-2, 2:-2] = 50
        for case_id in CASES:
            masks = dict(zip(NAMES, (ball(7), ball(5)), strict=True))
            images = {
                name: save(root / case_id / f"{name}.nii.gz", brain + 20 * (masks["a1"] > 0))
                for name in ("t1c", "flair")
            }
            drawn = {name: save(root / case_id / f"{name}.nii.gz", mask) for name, mask in masks.items()}
            entries.append({"case_id": case_id, "modalities": images, "annotations": drawn})
            self.write(case_id, masks)
            for name, gain in zip(NAMES, (0.2, -0.05), strict=True):
                rows += [[case_id, name, region, 0.9, gain, ""] for region in ("WT", "TC", "ET")]
            rows += [[case_id, "consensus", region, 0.7, "", ""] for region in ("WT", "TC", "ET")]
            rows += [[case_id, "all", region, "", "", 0.25] for region in ("WT", "TC", "ET")]
        self.data.write_text(json.dumps({"test": entries}))
        with (self.run / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["case_id", "annotator", "region", "dice", "gain", "ged"], *rows])

    def write(self, case_id: str, masks: dict[str, np.ndarray[Any, Any]]) -> None:
        """What evaluation writes and a report reads."""
        stem = self.run / "cases" / case_id / case_id
        for name, mask in {**masks, "consensus": ball(6)}.items():
            save(Path(f"{stem}_seg_{name}.nii.gz"), mask)
        apart = (masks["a1"] > 0) & (masks["a2"] == 0)
        save(Path(f"{stem}_who.nii.gz"), apart.astype(np.uint8))
        save(Path(f"{stem}_disagreement_js.nii.gz"), 0.9 * apart.astype(np.float32))
        region = {"region": 1, "volume_mm3": 1500.0, "who": {"a1": 0.8, "a2": 0.2}}
        region |= {"sentence": "like a1 & larger", "counterfactual": "Without a1 it is smaller."}
        why = {"rho": {"a1": 0.5, "a2": 0.5}, "regions": [region] * 4}
        why["disagreement"] = {"volume_ml": 1.0 if case_id == "x" else 2.0}
        Path(f"{stem}_why.json").write_text(json.dumps(why))
        Image.new("RGBA", (60, 40), "red").save(f"{stem}_why_1.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("annotators"))


class Balance(HTMLParser):
    """Collect text, pictures and tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.pictures: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(str(dict(attrs)["src"]))
        elif tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_of_a_run_by_the_command_line(home: Home, tmp_path: Path) -> None:
    words = [
        "report",
        home.run,
        "--data",
        home.data,
        "--section",
        "test",
        "--convention",
        "brats2018",
        "--out",
        tmp_path,
    ]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    page = Balance()
    page.feed((tmp_path / "index.html").read_text("utf-8"))
    assert (page.faults, page.open) == ([], [])
    # one of scores, two of habits, and a case's own and three of regions for both cases
    assert len(page.pictures) == 3 + 2 * (1 + 3)
    assert all(picture.startswith("data:image/") for picture in page.pictures)
    text = " ".join(page.text.split())
    assert "gains +0.075 Dice of the whole tumor on average, between -0.050 and +0.200" in text
    assert '"Who" is never blame.' in text
    assert "TAX-style, re-derived" in text
    assert "like a1 & larger" in text
    assert "1 smaller regions are in the case's why.html" in text
    assert text.index("1. y") < text.index("2. x"), "the case with most disagreement comes first"
    assert text.count("a1 tends to draw larger") == 2, "as drawn, and as predicted"
    assert str(home.run.parent) not in (tmp_path / "index.html").read_text("utf-8")


def test_fewer_cases(home: Home, tmp_path: Path) -> None:
    cases = load_datalist(home.data, section="test", with_annotations=True)
    seen = []
    path = write_annotator_report(
        home.run, cases, "brats2018", tmp_path / "one.html", max_cases=1, progress=lambda *done: seen.append(done)
    )
    assert path == tmp_path / "one.html"
    assert seen == [(1, 2), (2, 2)]
    assert "The first 1 of 2 cases" in path.read_text("utf-8")


def test_view_is_in_one_orientation(home: Home) -> None:
    cases = load_datalist(home.data, section="test", with_annotations=True)
    view = load_annotator_view(read_annotator_run(home.run), cases[0], "brats2018")
    assert view.annotators == NAMES
    assert view.spacing == (2.0, 2.0, 2.0)
    # the file's axis runs to the left, the view's to the right
    np.testing.assert_array_equal(view.consensus > 0, ball(6)[::-1] > 0)
    np.testing.assert_array_equal(view.drawn, view.versions)
    assert set(np.unique(view.versions)) == {0, 2, 3}
    assert view.depth == ((ball(7) > 0) & (ball(5) == 0)).sum((0, 1)).argmax()
    figure = annotator_figure(view)
    titles = [axis.get_title() for axis in figure.axes]
    assert [title for title in titles if title.endswith("as predicted")] == ["a1, as predicted", "a2, as predicted"]


def test_exception(home: Home, tmp_path: Path) -> None:
    cases = load_datalist(home.data, section="test", with_annotations=True)
    with pytest.raises(ValueError, match="expected at least one case to show, got 0"):
        write_annotator_report(home.run, cases, "brats2018", tmp_path, max_cases=0)
    with pytest.raises(DataError, match=r"case-missing.*expected all 2 scored cases"):
        write_annotator_report(home.run, cases[:1], "brats2018", tmp_path)
    with pytest.raises(DataError, match="metrics-missing"):
        is_annotator_run(tmp_path)
    with pytest.raises(DataError, match="result-missing"):
        read_annotator_run(home.run).why("z")
    table = tmp_path / "metrics.csv"
    table.write_text("case_id,annotator,region,dice,gain,ged\nx,consensus,WT,0.5,,\n")
    with pytest.raises(DataError, match="expected scores of at least one annotator"):
        read_annotator_run(tmp_path)
    table.write_text("case_id,annotator,region,dice,gain,ged\nx,a1,XX,0.5,0.1,\n")
    with pytest.raises(DataError, match="line 2: expected a region"):
        read_annotator_run(tmp_path)
    words = ["report", home.run, home.run, "--data", home.data, "--section", "test", "--convention", "brats2018"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2
    assert "expected one run where there are several annotators" in " ".join(result.stderr.replace("│", " ").split())
