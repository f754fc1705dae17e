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


"""The demo's own parts: how far a bundle's process is, what happens when it fails, how tables are joined."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_rrr.cli.bundle_run import evaluated, find_bundle, run_bundle, trained
from monai_rrr.cli.scores import print_scores
from monai_rrr.errors import ConfigError

HEADER = "case_id,method,threshold,region,dice,truth_ml,pred_ml\n"


def test_find_bundle_takes_a_name_or_a_folder() -> None:
    folder = find_bundle("brats_mri_equivariant_cam")
    assert (folder / "configs" / "train.yaml").is_file()
    assert find_bundle(str(folder)) == folder


def test_find_bundle_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[bundle-missing\] expected a bundle's folder, got 'nothing'"):
        find_bundle("nothing")


def test_trained_reads_the_steps_off_the_files(tmp_path: Path) -> None:
    assert trained(tmp_path) == (0, 0)
    (tmp_path / "run.json").write_text(json.dumps({"epochs": 3, "iterations_per_epoch": 20}))
    assert trained(tmp_path) == (0, 0)
    (tmp_path / "training.csv").write_text("step,term,value\n10,total,1.0\n20,total,0.5\n")
    assert trained(tmp_path) == (20, 60)
    (tmp_path / "training.csv").write_text("step,term,value\n10,total,1.0\n2")
    assert trained(tmp_path)[1] in (0, 60)


def test_evaluated_counts_cases(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "cases" / name).mkdir(parents=True)
    (tmp_path / "cases" / "a" / "a_pred.nii.gz").touch()
    assert evaluated(tmp_path, 4) == (1, 4)


@pytest.mark.slow
def test_run_bundle_shows_the_end_of_the_log_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("run: [$1 / 0]\n")
    log = tmp_path / "out" / "train.log"
    with pytest.raises(RuntimeError, match="training x ended with code 1") as caught:
        run_bundle("training x", tmp_path, ["train.yaml"], {"seed": 1}, log, lambda: (0, 0))
    assert "Failed to evaluate" in str(caught.value)
    assert str(log) in str(caught.value)


@pytest.mark.parametrize(("columns", "cell"), [("120", "0.70 [0.60, 0.80]"), ("80", "0.70 ")])
def test_scores_of_all_runs_stand_in_one_table(
    columns: str, cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for method, dice in (("full", (0.8, 0.6)), ("plain_cam", (0.4, 0.4))):
        rows = [f"{case},{method},tag_calibrated,WT,{value},9,9" for case, value in zip("ab", dice, strict=True)]
        rows += [f"{case},empty,label_free,WT,0.0,9,0" for case in "ab"]
        (tmp_path / method / "eval").mkdir(parents=True)
        (tmp_path / method / "eval" / "metrics.csv").write_text(HEADER + "\n".join(rows) + "\n")
    print_scores([tmp_path / "full", tmp_path / "plain_cam"])
    printed = capsys.readouterr().out
    assert cell in printed
    assert [printed.count(name) for name in ("full", "plain_cam", "empty")] == [1, 1, 1]
    assert ("[" in printed.split("mean")[1]) == (columns == "120")
