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
from monai_rrr.cli.demo import _merge, _print_table
from monai_rrr.errors import ConfigError

HEADER = "case_id,method,threshold,region,dice\n"


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


def test_merge_adds_methods_and_keeps_shared_baselines_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = "a,empty,label_free,WT,0.0\nb,empty,label_free,WT,0.0\n"
    (tmp_path / "full.csv").write_text(HEADER + "a,full,oracle,WT,0.8\nb,full,oracle,WT,0.6\n" + shared)
    (tmp_path / "plain.csv").write_text(HEADER + "a,plain_cam,oracle,WT,0.4\nb,plain_cam,oracle,WT,0.4\n" + shared)
    _merge([tmp_path / "full.csv", tmp_path / "plain.csv"], tmp_path / "full.csv")
    lines = (tmp_path / "full.csv").read_text().splitlines()
    assert len(lines) == 7
    assert lines[1] == "a,full,oracle,WT,0.8"
    assert sum("empty" in line for line in lines) == 2
    _print_table(tmp_path / "full.csv")
    printed = capsys.readouterr().out
    assert "0.700 [0.600, 0.800]" in printed
    assert "0.400 [0.400, 0.400]" in printed
