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

"""Multi-annotator cohorts on disk: whole or not at all, never in place, and the same ones again from the manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from monai_rrr.cli import app
from monai_rrr.data import (
    TeamSettings,
    load_annotated,
    load_datalist,
    make_annotators,
    read_annotators,
    replay_annotators,
)
from monai_rrr.data.annotations import annotator_groups
from monai_rrr.data.annotator_rules import KINDS
from monai_rrr.data.annotator_team import make_team, plan_cases
from monai_rrr.errors import ConfigError, DataError, DatasetError
from monai_rrr.utils.files import sha256

IDS = [f"a{number}" for number in range(1, 7)]
MANY = [f"case_{number:03d}" for number in range(60)]


@pytest.fixture(scope="module")
def team(phantom_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = digests(phantom_cohort)
    out = make_annotators(load_datalist(phantom_cohort), "brats2018", tmp_path_factory.mktemp("team") / "out")
    assert digests(phantom_cohort) == before
    return out


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def array(path: Any) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_every_case_has_a_mask_by_everybody_in_place_of_the_label(phantom_cohort: Path, team: Path) -> None:
    truths = {case["case_id"]: case["label"] for case in load_datalist(phantom_cohort)}
    seen = []
    for section, count in (("training", 4), ("test", 2)):
        cases = load_annotated(team / "datalist.json", IDS, section)
        assert len(cases) == count
        for case in cases:
            seen.append(case["case_id"])
            assert ("label" in case) == (section == "test"), "the truth is for evaluation"
            assert all(Path(path).is_file() for path in case["modalities"].values())
            truth = nib.load(truths[case["case_id"]])
            for path in case["annotations"].values():
                mask = nib.load(path)
                assert mask.shape == truth.shape
                np.testing.assert_array_equal(mask.affine, truth.affine)
                assert set(np.unique(array(path))) <= {0, 1, 2, 4}
    assert sorted(seen) == sorted(truths)


def test_the_manifest_says_who_is_who(phantom_cohort: Path, team: Path) -> None:
    manifest = read_annotators(team)
    kinds = {member["kind"]: name for name, member in manifest["annotators"].items()}
    assert set(kinds) == set(KINDS)
    assert list(kinds) != list(KINDS), "the order of the pseudonyms tells nothing"
    truths = {case["case_id"]: case["label"] for case in load_datalist(phantom_cohort)}
    volumes = dict.fromkeys(kinds, 0)
    for entry in manifest["cases"]:
        for kind, name in kinds.items():
            path = team / "masks" / entry["case_id"] / f"{entry['case_id']}_{name}.nii.gz"
            volumes[kind] += int((array(path) > 0).sum())
    truth = sum(int((array(path) > 0).sum()) for path in truths.values())
    assert volumes["under"] < volumes["expert"] < volumes["over"]
    assert volumes["expert"] == pytest.approx(truth, rel=0.03)
    offsets = [entry["masks"][kinds["over"]]["offset_mm"] for entry in manifest["cases"]]
    assert len(set(offsets)) == len(offsets)
    assert np.mean(offsets) == pytest.approx(2.0, abs=0.6)


def test_the_manifest_replays_bit_for_bit(phantom_cohort: Path, team: Path, tmp_path: Path) -> None:
    again = replay_annotators(team / "annotators.json", load_datalist(phantom_cohort), tmp_path / "again")
    first, second = digests(team), digests(again)
    assert {n: d for n, d in first.items() if n != "datalist.json"} == {
        n: d for n, d in second.items() if n != "datalist.json"
    }
    listed = [load_annotated(folder / "datalist.json") for folder in (team, again)]
    assert [case["modalities"] for case in listed[0]] == [case["modalities"] for case in listed[1]]


def test_a_case_does_not_depend_on_the_others(phantom_cohort: Path, team: Path, tmp_path: Path) -> None:
    some = load_datalist(phantom_cohort)[1:4]
    out = make_annotators(some, "brats2018", tmp_path / "some", TeamSettings(held_out=0.0))
    for case in some:
        for path in (out / "masks" / case["case_id"]).iterdir():
            assert sha256(path) == sha256(team / "masks" / case["case_id"] / path.name)


def test_orientation_of_the_file_does_not_matter(phantom_cohort: Path, team: Path, tmp_path: Path) -> None:
    case = load_datalist(phantom_cohort)[1]
    image = nib.load(case["label"])
    turn = nib.orientations.axcodes2ornt(("S", "L", "P"))
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), turn))
    (tmp_path / "in").mkdir()
    nib.save(turned, tmp_path / "in" / "turned_seg.nii.gz")
    case = {**case, "label": str(tmp_path / "in" / "turned_seg.nii.gz")}
    out = make_annotators([case], "brats2018", tmp_path / "out", TeamSettings(held_out=0.0))
    for path in (out / "masks" / case["case_id"]).iterdir():
        one, other = nib.load(path), nib.load(team / "masks" / case["case_id"] / path.name)
        assert nib.aff2axcodes(one.affine) == ("S", "L", "P")
        np.testing.assert_array_equal(
            np.asarray(nib.as_closest_canonical(one).dataobj), np.asarray(nib.as_closest_canonical(other).dataobj)
        )


@pytest.mark.parametrize("level", ["L2", "L4"])
def test_other_levels_on_files(level: str, phantom_cohort: Path, team: Path, tmp_path: Path) -> None:
    cases = load_datalist(phantom_cohort)[:2]
    out = make_annotators(cases, "brats2018", tmp_path / "out", TeamSettings(level=level, held_out=0.0))
    manifest = read_annotators(out)
    names = [name for name, member in manifest["annotators"].items() if member["kind"] == "over"]
    (drawn,) = {len(case["annotations"]) for case in load_annotated(out / "datalist.json")}
    assert drawn == (8 if level == "L4" else 6)
    for case in cases:
        paths = [out / "masks" / case["case_id"] / f"{case['case_id']}_{name}.nii.gz" for name in names]
        if level == "L4":
            assert sha256(paths[0]) == sha256(paths[1]), "a copy"
            under = [n for n, member in manifest["annotators"].items() if member["kind"] == "under"]
            a, b = (array(str(paths[0]).replace(f"_{names[0]}.", f"_{n}.")) > 0 for n in under)
            assert 0.8 < 2 * (a & b).sum() / (a.sum() + b.sum()) < 1.0, "one who leans on another"
        else:
            assert (array(paths[0]) > 0).sum() > (array(case["label"]) > 0).sum()
            assert "flair" in manifest["cases"][0]["sources"]


def test_sparse_cases_link_all_annotators_and_follow_the_site() -> None:
    for seed in range(6):
        settings = TeamSettings(level="L3", seed=seed)
        team = make_team(settings)
        plans = plan_cases(MANY, team, settings)
        drawn = {case_id: plan.annotators for case_id, plan in plans.items() if plan.section == "training"}
        assert annotator_groups(drawn) == [IDS]
        assert {len(names) for names in drawn.values()} == {1, 2, 3}
        home = [team[name].home == plans[case_id].site for case_id, names in drawn.items() for name in names]
        assert np.mean(home) > 0.45, "a third without bias"
        assert {len(plan.annotators) for plan in plans.values() if plan.section == "test"} == {6}


def test_few_sparse_cases_are_linked_too() -> None:
    for seed in range(10):
        settings = TeamSettings(level="L3", seed=seed, held_out=0.0)
        plans = plan_cases(MANY[:4], make_team(settings), settings)
        assert annotator_groups({case_id: plan.annotators for case_id, plan in plans.items()}) == [IDS]


def test_the_unseen_annotator_draws_other_cases() -> None:
    settings = TeamSettings(level="L5", unseen="smoother")
    team = make_team(settings)
    (new,) = [name for name, member in team.items() if member.kind == "smoother"]
    plans = plan_cases(MANY, team, settings)
    sections = {name: [p for p in plans.values() if p.section == name] for name in ("training", "adaptation", "test")}
    assert {name: len(found) for name, found in sections.items()} == {"training": 30, "adaptation": 10, "test": 20}
    assert all(new not in plan.annotators and len(plan.annotators) == 5 for plan in sections["training"])
    assert all(plan.annotators == [new] for plan in sections["adaptation"])
    assert all(len(plan.annotators) == 6 for plan in sections["test"])


def test_patients_are_split_before_anything_is_drawn() -> None:
    ids = [f"BraTS-GLI-{patient:05d}-{visit:03d}" for patient in range(12) for visit in (100, 101)]
    settings = TeamSettings()
    plans = plan_cases(ids, make_team(settings), settings)
    sections = {case_id[:15]: set() for case_id in ids}  # type: ignore[var-annotated]
    for case_id, plan in plans.items():
        sections[case_id[:15]].add(plan.section)
    assert all(len(found) == 1 for found in sections.values())


def test_without_an_expert_no_mask_is_the_truth() -> None:
    assert {member.kind for member in make_team(TeamSettings(expert=False)).values()} == set(KINDS) - {"expert"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"level": "L6"}, "expected a level of L1, L2, L3, L4, L5, got 'L6'"),
        ({"held_out": 1.0}, r"held_out must be in \[0, 1\)"),
        ({"seed": -1}, "seed of 32 bits"),
        ({"unseen": "nobody"}, "unseen expected one of"),
        ({"adaptation": 0}, "must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeamSettings(**wrong)


def test_unusable_cases_are_refused_before_anything_is_written(phantom_cohort: Path, tmp_path: Path) -> None:
    cases, out = load_datalist(phantom_cohort), tmp_path / "out"
    with pytest.raises(DatasetError, match="label-missing") as found:
        make_annotators([{**case, "label": None} for case in cases[:2]], "brats2018", out)
    assert len(found.value.faults) == 2
    plain = [{**case, "modalities": {"t1": case["modalities"]["t1"]}} for case in cases]
    with pytest.raises(DatasetError, match="expected flair"):
        make_annotators(plain, "brats2018", out, TeamSettings(level="L2"))
    with pytest.raises(DataError, match=r"annotators-cases.*expected more than 12 patients"):
        make_annotators(cases, "brats2018", out, TeamSettings(level="L5"))
    with pytest.raises(DatasetError, match="duplicate-case"):
        make_annotators([*cases, cases[0]], "brats2018", out)
    with pytest.raises(ConfigError, match="label-convention"):
        make_annotators(cases, "brats", out)
    with pytest.raises(DataError, match="label-values"):
        make_annotators(cases, "brats2023", out)
    assert list(tmp_path.iterdir()) == []


def test_never_in_place(phantom_cohort: Path, tmp_path: Path) -> None:
    cases = load_datalist(phantom_cohort)
    for place in (phantom_cohort / cases[0]["case_id"] / "new", phantom_cohort.parent):
        with pytest.raises(DataError, match="annotators-out"):
            make_annotators(cases, "brats2018", place)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(DataError, match="got one with content"):
        make_annotators(cases, "brats2018", tmp_path / "full")


def test_replaying_something_else_is_refused(phantom_cohort: Path, team: Path, tmp_path: Path) -> None:
    cases = load_datalist(phantom_cohort)
    with pytest.raises(DataError, match=r"annotators-source.*found none"):
        replay_annotators(team / "annotators.json", cases[1:], tmp_path / "out")
    other = [{**case, "label": cases[0]["label"]} for case in cases]
    with pytest.raises(DataError, match=r"annotators-source.*got other ones"):
        replay_annotators(team / "annotators.json", other, tmp_path / "out")
    content = json.loads((team / "annotators.json").read_text("utf-8"))
    for member in content["annotators"].values():
        member["settings"]["sigma_mm"] += 3.0
    (tmp_path / "changed.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="annotators-replay"):
        replay_annotators(tmp_path / "changed.json", cases, tmp_path / "out")
    (tmp_path / "broken.json").write_text("{")
    for name, message in (("none.json", "found none"), ("broken.json", "expected JSON")):
        with pytest.raises(DataError, match=f"annotators-manifest.*{message}"):
            replay_annotators(tmp_path / name, cases, tmp_path / "out")
    (tmp_path / "old.json").write_text('{"version": 0}')
    with pytest.raises(DataError, match="version 1, got 0"):
        read_annotators(tmp_path / "old.json")
    assert not (tmp_path / "out").exists()


def test_command(phantom_cohort: Path, tmp_path: Path) -> None:
    for case in sorted(path for path in phantom_cohort.iterdir() if path.is_dir())[:3]:
        shutil.copytree(case, tmp_path / "in" / case.name)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--convention", "brats2018", "--level", "L3", "--no-expert"]
    result = CliRunner().invoke(app, ["annotators", *words])
    assert result.exit_code == 0, result.output
    assert "annotators.json" in result.output
    assert len(load_annotated(tmp_path / "out" / "datalist.json")) == 2
    again = ["annotators", str(tmp_path / "in"), str(tmp_path / "again"), "--replay"]
    result = CliRunner().invoke(app, [*again, str(tmp_path / "out" / "annotators.json")])
    assert result.exit_code == 0, result.output
    assert digests(tmp_path / "out" / "masks") == digests(tmp_path / "again" / "masks")
    for wrong, message in (
        (words[:2], "expected either --convention"),
        ([words[0], str(tmp_path / "in" / "x"), *words[2:]], "expected OUT outside"),
        ([*words[:5], "L9"], "expected a level"),
    ):
        result = CliRunner().invoke(app, ["annotators", *wrong])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
